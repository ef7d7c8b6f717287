//! Where batch norm can be cuDNN's, and why it cannot elsewhere.
use syncmark_engine::model::spec::{ModelSpec, Momentum, Padding};

use crate::plan::meaningless::Refused;
use crate::plan::model::{NormOfModel, keeps_own_statistics, synchronizes};
use crate::scenario::file::{CudaBatchNorm, Scenario};

const NORM: &str = "write norm = \"batch\", or leave cuda_batch_norm out";

/// Why the batch norm of a scenario is not cuDNN's to compute, where it is to be, and what to write instead.
pub fn unfit(scenario: &Scenario, spec: &ModelSpec, norm: &NormOfModel) -> Option<Refused> {
    if scenario.train.cuda_batch_norm == CudaBatchNorm::Own {
        return None;
    }
    let (why, instead) = if synchronizes(spec, norm.norm) {
        (
            "SyncBatchNorm's statistics go through the ranks before anything is normalized, and cuDNN's batch norm is one call",
            NORM,
        )
    } else if !keeps_own_statistics(spec, norm.norm) {
        ("the model has no batch norm for cuDNN to compute", NORM)
    } else if norm.padding == Some(Padding::Masked) {
        (
            "cuDNN's batch norm leaves no padding out",
            "leave norm_padding or cuda_batch_norm out",
        )
    } else if norm.momentum == Some(Momentum::Cumulative) {
        (
            "cuDNN's batch norm is not told how many batches there were, which a cumulative average needs",
            "leave norm_momentum or cuda_batch_norm out",
        )
    } else if scenario.learns() {
        (
            "cuDNN's batch norm is there to be timed beside ours; trials that learn have ours",
            "leave cuda_batch_norm out",
        )
    } else {
        return None;
    };
    Some(Refused {
        key: "train.cuda_batch_norm",
        why: why.to_owned(),
        instead,
    })
}
