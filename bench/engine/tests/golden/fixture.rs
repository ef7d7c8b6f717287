//! Reads fixtures: files of `tests/golden`, written by `scripts/golden.py`. Their README is `scripts/pytorch/README.md`.
use std::collections::HashMap;
use std::path::PathBuf;

use safetensors::{Dtype, SafeTensors};
use syncmark_engine::program::{NamedTensor, TensorData};

/// A file's tensors and what it says about itself.
pub struct Fixture {
    pub name: String,
    metadata: HashMap<String, String>,
    tensors: HashMap<String, Tensor>,
}

/// A tensor, with all its values as f64.
#[derive(Clone)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
    pub integer: bool,
}

impl Tensor {
    /// Its values; exact where the file holds f32.
    pub fn f32(&self) -> Vec<f32> {
        self.values.iter().map(|v| *v as f32).collect()
    }
}

/// All fixtures, in the order of their names.
pub fn all() -> Vec<Fixture> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let entries = std::fs::read_dir(&folder).expect("the folder of fixtures");
    let paths = entries.map(|entry| entry.expect("a readable folder").path());
    let mut files: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    files.sort();
    files.into_iter().map(|path| read(&path)).collect()
}

/// All fixtures of one kind; at least one.
pub fn of_kind(kind: &str) -> Vec<Fixture> {
    let found: Vec<Fixture> = all()
        .into_iter()
        .filter(|fixture| fixture.text("kind") == kind)
        .collect();
    assert!(!found.is_empty(), "no fixture of kind {kind}");
    found
}

fn read(path: &std::path::Path) -> Fixture {
    let name = path
        .file_stem()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let bytes = std::fs::read(path).expect("a readable fixture");
    let parsed = SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("a header");
    let metadata = header.metadata().clone().unwrap_or_default();
    let tensors = parsed.tensors().into_iter().map(|(key, view)| {
        let (values, integer) = decode(view.dtype(), view.data());
        (
            key,
            Tensor {
                shape: view.shape().to_vec(),
                values,
                integer,
            },
        )
    });
    Fixture {
        name,
        metadata,
        tensors: tensors.collect(),
    }
}

fn decode(dtype: Dtype, bytes: &[u8]) -> (Vec<f64>, bool) {
    fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        bytes
            .as_chunks::<N>()
            .0
            .iter()
            .map(|chunk| value(*chunk))
            .collect()
    }
    match dtype {
        Dtype::F64 => (each(bytes, f64::from_le_bytes), false),
        Dtype::F32 => (each(bytes, |b| f64::from(f32::from_le_bytes(b))), false),
        Dtype::I64 => (each(bytes, |b| i64::from_le_bytes(b) as f64), true),
        Dtype::U32 => (each(bytes, |b| f64::from(u32::from_le_bytes(b))), true),
        other => panic!("a fixture of {other:?}"),
    }
}

impl Fixture {
    /// A string of the metadata.
    pub fn text(&self, key: &str) -> &str {
        self.metadata
            .get(key)
            .unwrap_or_else(|| panic!("{}: metadata {key} is missing", self.name))
    }
    /// Whether the metadata has a key: those with a default are left out.
    pub fn says(&self, key: &str) -> bool {
        self.metadata.contains_key(key)
    }
    /// JSON of the metadata.
    pub fn json<T: serde::de::DeserializeOwned>(&self, key: &str) -> T {
        serde_json::from_str(self.text(key))
            .unwrap_or_else(|error| panic!("{}: metadata {key}: {error}", self.name))
    }
    pub fn tensor(&self, name: &str) -> &Tensor {
        self.tensors
            .get(name)
            .unwrap_or_else(|| panic!("{}: tensor {name} is missing", self.name))
    }
    /// Tensors whose name begins with `prefix`, without it, in the order of their names.
    pub fn with_prefix(&self, prefix: &str) -> Vec<(String, &Tensor)> {
        let stripped = self
            .tensors
            .iter()
            .filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_owned(), t)));
        let mut found: Vec<(String, &Tensor)> = stripped.collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }
    /// `param.*` and `buffer_before.*` as a program imports them.
    pub fn initial(&self) -> Vec<NamedTensor> {
        let prefixes = ["param.", "buffer_before."];
        prefixes
            .iter()
            .flat_map(|prefix| self.with_prefix(prefix))
            .map(|(name, t)| named(name, t))
            .collect()
    }
    /// PyTorch's own largest float32 error in tensor `name`.
    pub fn fp32_gap(&self, name: &str) -> f64 {
        let gaps: HashMap<String, f64> = self.json("fp32_gap");
        *gaps
            .get(name)
            .unwrap_or_else(|| panic!("{}: no fp32_gap of {name}", self.name))
    }
    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}

fn named(name: String, tensor: &Tensor) -> NamedTensor {
    let data = if tensor.integer {
        TensorData::I64(tensor.values.iter().map(|v| *v as i64).collect())
    } else {
        TensorData::F32(tensor.f32())
    };
    NamedTensor {
        name,
        shape: tensor.shape.clone(),
        data,
    }
}

/// The values of an exported tensor.
pub fn values(tensor: &NamedTensor) -> Vec<f64> {
    match &tensor.data {
        TensorData::F32(values) => values.iter().map(|v| f64::from(*v)).collect(),
        TensorData::I64(values) => values.iter().map(|v| *v as f64).collect(),
    }
}
