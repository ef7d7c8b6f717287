//! Which fixtures there are: a file that nobody knows, or that is missing, is a mistake.
//!
//! Tests go through all files of their `kind`, so every file of a kind listed here is read. Those of `dp`, `ddp` and
//! `zero1` are read by `golden_parallel.rs`, those of `hook` by `golden_hooks.rs`.
use crate::fixture;

/// Kinds, each with a test that reads all its files.
const KINDS: [&str; 10] = [
    "ddp", "dp", "hook", "imagenet", "layer", "loss", "philox", "schedule", "training", "zero1",
];

/// All files, in the order of their names.
const NAMES: &[&str] = &[
    "average_pool_2",
    "average_pool_3_s1_p1_inside",
    "average_pool_3_s2_p1",
    "average_pool_3_s2_p1_inside",
    "average_pool_5_s3_p2",
    "batch_norm_1d_chunks",
    "batch_norm_1d_closed_form",
    "batch_norm_1d_cumulative",
    "batch_norm_1d_eval",
    "batch_norm_1d_length_chunks",
    "batch_norm_1d_length_eval",
    "batch_norm_1d_length_train",
    "batch_norm_1d_no_affine",
    "batch_norm_1d_three_steps",
    "batch_norm_1d_train",
    "batch_norm_2d_chunks",
    "batch_norm_2d_cumulative",
    "batch_norm_2d_eval",
    "batch_norm_2d_far_mean",
    "batch_norm_2d_momentum_03",
    "batch_norm_2d_no_affine",
    "batch_norm_2d_no_affine_eval",
    "batch_norm_2d_one_sample",
    "batch_norm_2d_three_steps",
    "batch_norm_2d_train",
    "conv2d_1x1_p1",
    "conv2d_1x1_s1",
    "conv2d_1x1_s2",
    "conv2d_1x1_s2_odd",
    "conv2d_2x2_s2",
    "conv2d_3x3_p0",
    "conv2d_3x3_p4",
    "conv2d_3x3_s1_p1",
    "conv2d_3x3_s1_p1_bias",
    "conv2d_3x3_s2_p1",
    "conv2d_3x3_s2_p1_odd",
    "conv2d_3x3_s2_p3",
    "conv2d_3x3_s3_p2",
    "conv2d_5x5_p2",
    "conv2d_7x7_s2_p3",
    "conv2d_7x7_s2_p3_odd",
    "conv2d_wide",
    "ddp_convnet_batch_2x4_accumulate_2",
    "ddp_convnet_batch_2x4_accumulate_2_each",
    "ddp_convnet_batch_2x4_own_buffers",
    "ddp_convnet_batch_2x8",
    "dp_convnet_batch_10_over_4",
    "dp_convnet_batch_16_over_2",
    "dp_convnet_batch_3_over_4",
    "dp_convnet_batch_8_over_2",
    "dp_convnet_batch_9_over_4",
    "dropout_eval",
    "dropout_p0",
    "flatten",
    "flatten_length",
    "gelu_image",
    "gelu_tails",
    "gelu_tanh_image",
    "gelu_tanh_tails",
    "global_average_pool",
    "global_average_pool_length",
    "group_norm_default",
    "group_norm_far_mean",
    "group_norm_features",
    "group_norm_few_channels",
    "group_norm_g1",
    "group_norm_g3_of_6",
    "group_norm_g4",
    "group_norm_g8",
    "group_norm_length",
    "hook_bf16_2_ranks",
    "hook_bf16_3_ranks",
    "hook_fp16_2_ranks",
    "hook_fp16_3_ranks",
    "hook_powersgd_cold_start",
    "hook_powersgd_no_feedback",
    "hook_powersgd_rank_1",
    "hook_powersgd_rank_2",
    "hook_powersgd_rank_3",
    "imagenet_resnet18",
    "imagenet_resnet50",
    "instance_norm_1d",
    "instance_norm_1d_no_affine",
    "instance_norm_2d",
    "instance_norm_2d_eval",
    "instance_norm_2d_far_mean",
    "instance_norm_2d_no_affine",
    "instance_norm_2d_wide",
    "layer_norm_channel",
    "layer_norm_channel_far_mean",
    "layer_norm_element",
    "layer_norm_features",
    "layer_norm_features_element",
    "layer_norm_features_none",
    "layer_norm_length",
    "layer_norm_length_element",
    "layer_norm_none",
    "linear_bias",
    "linear_narrow",
    "linear_no_bias",
    "loss_large_logits",
    "loss_many_classes",
    "loss_one_sample",
    "loss_small",
    "loss_ten_classes",
    "max_pool_1_s2",
    "max_pool_2_default_stride_odd",
    "max_pool_2_s2",
    "max_pool_2_s2_ties",
    "max_pool_2_s3_p1",
    "max_pool_3_s1_ties",
    "max_pool_3_s2_p1",
    "max_pool_3_s2_p1_ties",
    "max_pool_5_s3_p2",
    "philox_batch",
    "philox_convnet",
    "philox_words",
    "relu_image",
    "relu_kink",
    "repeat_in_repeat",
    "repeat_in_residual",
    "repeat_with_growing_channels",
    "residual_bottleneck",
    "residual_identity",
    "residual_identity_norm",
    "residual_in_repeat",
    "residual_projection",
    "residual_projection_rms",
    "rms_norm_channel",
    "rms_norm_channel_eval",
    "rms_norm_channel_wide",
    "rms_norm_element",
    "rms_norm_features",
    "rms_norm_features_element",
    "rms_norm_features_none",
    "rms_norm_length",
    "rms_norm_length_element",
    "rms_norm_none",
    "rms_norm_tiny",
    "schedule_constant",
    "schedule_cosine",
    "schedule_cosine_minimum",
    "schedule_cosine_warm_up",
    "schedule_step",
    "schedule_step_each",
    "schedule_warm_up",
    "schedule_warm_up_from_zero",
    "sync_batch_norm_empty_rank",
    "sync_batch_norm_eval",
    "sync_batch_norm_even",
    "sync_batch_norm_far_mean",
    "sync_batch_norm_features",
    "sync_batch_norm_length",
    "sync_batch_norm_uneven",
    "train_convnet_adamw",
    "train_convnet_adamw_cosine",
    "train_convnet_batch",
    "train_convnet_group",
    "train_convnet_instance",
    "train_convnet_layer",
    "train_convnet_nesterov",
    "train_convnet_none",
    "train_convnet_rms",
    "train_mlp_batch",
    "train_resnet20_batch",
    "zero1_convnet_adamw_2x8",
];

#[test]
fn every_fixture_is_known_and_none_is_missing() {
    let found: Vec<String> = fixture::all()
        .into_iter()
        .map(|fixture| fixture.name)
        .collect();
    let unknown: Vec<&String> = found
        .iter()
        .filter(|name| !NAMES.contains(&name.as_str()))
        .collect();
    let missing: Vec<&&str> = NAMES
        .iter()
        .filter(|name| !found.iter().any(|found| found == *name))
        .collect();
    assert!(
        unknown.is_empty() && missing.is_empty(),
        "unknown: {unknown:?}; missing: {missing:?}"
    );
}

#[test]
fn every_fixture_is_of_a_kind_that_a_test_reads_and_says_where_it_comes_from() {
    for fixture in fixture::all() {
        assert!(
            KINDS.contains(&fixture.text("kind")),
            "{}: kind {}",
            fixture.name,
            fixture.text("kind")
        );
        assert!(fixture.text("torch").starts_with("2."), "{}", fixture.name);
        assert!(
            fixture.text("command").contains("golden.py"),
            "{}",
            fixture.name
        );
    }
}
