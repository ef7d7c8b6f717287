//! Parameters, buffers and an optimizer's state go out by name and come back, or are refused.
use syncmark_engine::model::spec::Norm;
use syncmark_engine::optim::Optimizer;
use syncmark_engine::program::{ImportError, NamedTensor, TensorData};

use super::devices;
use super::{MOMENTUM, NET, build, export, floats, model, pass};

#[test]
fn export_and_import_are_inverse() {
    for backend in devices::all() {
        let net = model(NET, Norm::Batch);
        let mut trained = build(devices::cpu(), &net, 3, 1);
        pass(&mut trained, &[3]);
        let mut state = export(&mut trained);
        assert!(
            state
                .iter()
                .any(|tensor| tensor.data == TensorData::I64(vec![1])),
            "one batch was tracked"
        );
        state.reverse();
        // Optimizer state among the tensors is passed over.
        state.push(NamedTensor {
            name: "momentum.5.linear.bias".into(),
            shape: vec![1],
            data: TensorData::F32(vec![0.0]),
        });
        let mut fresh = build(backend, &net, 3, 1);
        assert_ne!(export(&mut fresh), export(&mut trained));
        fresh
            .program
            .import(fresh.backend.as_mut(), &state)
            .expect("import");
        assert_eq!(export(&mut fresh), export(&mut trained));
    }
}

#[test]
fn tensors_that_do_not_fit_are_refused_and_change_nothing() {
    let mut device = build(devices::cpu(), &model(NET, Norm::Batch), 2, 1);
    let state = export(&mut device);
    let mut refused = |change: &dyn Fn(&mut Vec<NamedTensor>)| {
        let mut tensors = state.clone();
        // A change that would show, if the import were not refused as a whole.
        tensors[0].data = TensorData::F32(vec![9.0; floats(&state[0]).len()]);
        change(&mut tensors);
        let error = device
            .program
            .import(device.backend.as_mut(), &tensors)
            .expect_err("refused");
        assert_eq!(export(&mut device), state, "{error}");
        error
    };
    let missing = refused(&|tensors| drop(tensors.remove(2)));
    assert_eq!(missing.to_string(), "tensor 1.batch-norm.bias is missing");
    let unknown = refused(&|tensors| {
        tensors.push(NamedTensor {
            name: "9.linear.bias".into(),
            ..tensors[0].clone()
        })
    });
    assert!(
        matches!(&unknown, ImportError::Unknown { name } if name == "9.linear.bias"),
        "{unknown}"
    );
    let shape = refused(&|tensors| tensors[1].shape = vec![2, 2]);
    assert_eq!(
        shape.to_string(),
        "tensor 1.batch-norm.weight has shape [2, 2] (f32), the model's has [4] (f32)"
    );
    let dtype = refused(&|tensors| tensors[5].data = TensorData::F32(vec![0.0]));
    assert_eq!(
        dtype.to_string(),
        "tensor 1.batch-norm.num_batches_tracked has shape [] (f32), the model's has [] (i64)"
    );
}

#[test]
fn an_optimizers_state_is_exported_by_name_and_imported() {
    let net = model(NET, Norm::Batch);
    let mut device = build(devices::cpu(), &net, 2, 1);
    let mut sgd =
        Optimizer::new(device.backend.as_mut(), &device.program, MOMENTUM).expect("enough memory");
    device
        .state
        .set_learning_rate(device.backend.as_mut(), 0.1)
        .expect("upload");
    pass(&mut device, &[2]);
    sgd.step(device.backend.as_mut(), device.state)
        .expect("step");
    let state = sgd
        .export(device.backend.as_mut(), &device.program)
        .expect("export");
    assert_eq!(state[0].name, "momentum.0.conv2d.weight");
    assert!(floats(&state[0]).iter().any(|v| *v != 0.0));
    let mut other = build(devices::deferred(), &net, 2, 1);
    let fresh =
        Optimizer::new(other.backend.as_mut(), &other.program, MOMENTUM).expect("enough memory");
    fresh
        .import(other.backend.as_mut(), &other.program, &state)
        .expect("import");
    assert_eq!(
        fresh
            .export(other.backend.as_mut(), &other.program)
            .expect("export"),
        state
    );
    let error = fresh
        .import(other.backend.as_mut(), &other.program, &state[1..])
        .expect_err("refused");
    assert_eq!(
        error.to_string(),
        "tensor momentum.0.conv2d.weight is missing"
    );
}
