//! A run folder: typed reading and writing of every file in it.
//!
//! Contract: `repeats.csv` gets its row last, so a repeat that stands there has all its details in the other
//! files. A repeat that cannot be written whole is taken back from every file. `trials.csv`,
//! `environment.json` and `scenario.toml` are replaced in one move, never half written.
//! Reference: "A run folder" in ARCHITECTURE.md.
use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::{
    environment::{Environment, FORMAT_VERSION},
    error::FolderError,
    rows::{
        AlgorithmRow, CeilingRow, CollectiveRow, CommRow, CompressionRow, DeviceRow, GateRow,
        GpuRow, LayerRow, LearningRow, NormStatisticsRow, PhaseRow, RepeatRow, StepRow, TrialRow,
    },
    table::{Appender, Row, Rows, encode},
};

/// Name of the environment's file.
pub const ENVIRONMENT_FILE: &str = "environment.json";
/// Name of the scenario's file.
pub const SCENARIO_FILE: &str = "scenario.toml";

/// A run folder on disk.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Makes the folder and its parents. A folder that is there is taken if it holds no records yet.
    ///
    /// # Errors
    /// [`FolderError::Occupied`] for a folder with records, [`FolderError::NotAFolder`], [`FolderError::Io`].
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, FolderError> {
        let path = path.into();
        if path.exists() && !path.is_dir() {
            return Err(FolderError::NotAFolder { path });
        }
        for file in [RepeatRow::FILE, TrialRow::FILE, StepRow::FILE] {
            if path.join(file).exists() {
                return Err(FolderError::Occupied { path, file });
            }
        }
        fs::create_dir_all(&path).map_err(|error| FolderError::io("create", &path, error))?;
        let folder = Self { path };
        folder.check_writable()?;
        Ok(folder)
    }

    /// Opens a folder that is there, to read it or to append to it.
    ///
    /// # Errors
    /// [`FolderError::Missing`] or [`FolderError::NotAFolder`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, FolderError> {
        let path = path.into();
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => Ok(Self { path }),
            Ok(_) => Err(FolderError::NotAFolder { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(FolderError::Missing { path })
            }
            Err(error) => Err(FolderError::io("read", path, error)),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Finds out before hours of measuring, not after, whether files can be made here.
    fn check_writable(&self) -> Result<(), FolderError> {
        let probe = self.path.join(".writable");
        let written =
            fs::write(&probe, b"x").map_err(|error| FolderError::io("write to", &self.path, error));
        let _ = fs::remove_file(&probe);
        written
    }

    /// Replaces a file of the folder in one move: readers see the old text or the new one, never a part.
    ///
    /// # Errors
    /// [`FolderError::Io`]; the older file is then still whole.
    pub fn replace(&self, name: &str, text: &[u8]) -> Result<(), FolderError> {
        let target = self.path.join(name);
        let draft = self.path.join(format!(".{name}.part"));
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&draft)?;
            file.write_all(text)?;
            file.sync_data()?;
            fs::rename(&draft, &target)
        };
        write().map_err(|source| {
            let _ = fs::remove_file(&draft);
            let kept = target.exists().then(|| format!("the older {name} is kept"));
            FolderError::Io {
                action: "write",
                path: target.clone(),
                source,
                kept,
            }
        })
    }

    /// Writes `environment.json`.
    ///
    /// # Errors
    /// [`FolderError::Io`].
    pub fn write_environment(&self, environment: &Environment) -> Result<(), FolderError> {
        let mut text =
            serde_json::to_vec_pretty(environment).expect("an environment is plain data");
        text.push(b'\n');
        self.replace(ENVIRONMENT_FILE, &text)
    }

    /// Reads `environment.json`; `None` if there is none.
    ///
    /// # Errors
    /// [`FolderError::Json`], [`FolderError::Version`] for a newer format, [`FolderError::Io`].
    pub fn environment(&self) -> Result<Option<Environment>, FolderError> {
        let path = self.path.join(ENVIRONMENT_FILE);
        let Some(text) = read_optional(&path)? else {
            return Ok(None);
        };
        let json = |error: serde_json::Error| FolderError::Json {
            path: path.clone(),
            line: error.line(),
            column: error.column(),
            message: error.to_string(),
        };
        // The version is looked at first: a newer format may lack or change any other field.
        let value: serde_json::Value = serde_json::from_str(&text).map_err(json)?;
        let found = value
            .get("format_version")
            .and_then(serde_json::Value::as_u64)
            .unwrap_or(0) as u32;
        if found > FORMAT_VERSION {
            return Err(FolderError::Version {
                path,
                found,
                supported: FORMAT_VERSION,
            });
        }
        serde_json::from_str(&text).map(Some).map_err(json)
    }

    /// Writes `scenario.toml`, as run.
    ///
    /// # Errors
    /// [`FolderError::Io`].
    pub fn write_scenario(&self, text: &str) -> Result<(), FolderError> {
        self.replace(SCENARIO_FILE, text.as_bytes())
    }

    /// Reads `scenario.toml`; `None` if there is none.
    ///
    /// # Errors
    /// [`FolderError::Io`].
    pub fn scenario(&self) -> Result<Option<String>, FolderError> {
        read_optional(&self.path.join(SCENARIO_FILE))
    }

    /// Rewrites `trials.csv` whole.
    ///
    /// # Errors
    /// [`FolderError::Io`]; the older file is then still whole.
    pub fn write_trials(&self, trials: &[TrialRow]) -> Result<(), FolderError> {
        self.replace(TrialRow::FILE, &encode(trials, true))
    }

    /// Rewrites `gates.csv` whole.
    ///
    /// # Errors
    /// [`FolderError::Io`]; the older file is then still whole.
    pub fn write_gates(&self, gates: &[GateRow]) -> Result<(), FolderError> {
        self.replace(GateRow::FILE, &encode(gates, true))
    }

    /// Streams the rows of one file; none if the file is not there.
    ///
    /// # Errors
    /// [`FolderError::Io`]; each item can be a [`FolderError::Row`], after which there is none.
    pub fn rows<R: Row>(&self) -> Result<Rows<R>, FolderError> {
        Rows::open(&self.path)
    }

    /// As [`RunFolder::rows`], but only rows with this value in this column: quick where most rows have another.
    ///
    /// # Errors
    /// As [`RunFolder::rows`].
    pub fn rows_where<R: Row>(
        &self,
        column: &str,
        value: &'static str,
    ) -> Result<Rows<R>, FolderError> {
        Rows::open_where(&self.path, Some((column, value)))
    }

    /// All rows of one file. `steps.csv` and `phases.csv` can be large: prefer [`RunFolder::rows`] for them.
    ///
    /// # Errors
    /// As [`RunFolder::rows`].
    pub fn read<R: Row>(&self) -> Result<Vec<R>, FolderError> {
        self.rows()?.collect()
    }

    /// Opens the files to which repeats are appended.
    ///
    /// # Errors
    /// [`FolderError::Header`] when an existing file has other columns, [`FolderError::Io`].
    pub fn records(&self) -> Result<Records, FolderError> {
        let repeats_kept = self.rows::<RepeatRow>()?.filter(Result::is_ok).count();
        Ok(Records {
            repeats: Appender::open(&self.path)?,
            steps: Appender::open(&self.path)?,
            phases: Appender::open(&self.path)?,
            comm: Appender::open(&self.path)?,
            devices: Appender::open(&self.path)?,
            gpus: Appender::open(&self.path)?,
            algorithms: Appender::open(&self.path)?,
            learning: Appender::open(&self.path)?,
            norm_statistics: Appender::open(&self.path)?,
            collectives: Appender::open(&self.path)?,
            layers: Appender::open(&self.path)?,
            ceilings: Appender::open(&self.path)?,
            compression: Appender::open(&self.path)?,
            repeats_kept,
        })
    }
}

fn read_optional(path: &Path) -> Result<Option<String>, FolderError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FolderError::io("read", path, error)),
    }
}

/// Everything that one repeat of one trial leaves.
#[derive(Clone, Debug, PartialEq)]
pub struct RepeatRecord {
    /// The repeat itself.
    pub repeat: RepeatRow,
    /// Steps of all passes and ranks.
    pub steps: Vec<StepRow>,
    /// Spans of the traced steps.
    pub phases: Vec<PhaseRow>,
    /// Communication of the window.
    pub comm: Vec<CommRow>,
    /// What each device held.
    pub devices: Vec<DeviceRow>,
    /// Where its GPUs sit and what state they were in; empty for trials on CPUs.
    pub gpus: Vec<GpuRow>,
    /// What NVIDIA's libraries took; empty where they were left nothing to choose.
    pub algorithms: Vec<AlgorithmRow>,
    /// Learning curve; empty for trials that only measure speed.
    pub learning: Vec<LearningRow>,
    /// Noise of batch statistics; empty for trials that do not learn, or have no batch norm.
    pub norm_statistics: Vec<NormStatisticsRow>,
    /// Times of collectives; empty for other kinds of trials.
    pub collectives: Vec<CollectiveRow>,
    /// Times of the model's nodes; empty for other kinds of trials.
    pub layers: Vec<LayerRow>,
    /// What the machine could do at best beside them; empty for trials that are held against no ceiling.
    pub ceilings: Vec<CeilingRow>,
    /// Accuracy of compressed gradients; empty where nothing is compressed.
    pub compression: Vec<CompressionRow>,
}

/// The files of a run folder, open for appending.
pub struct Records {
    repeats: Appender<RepeatRow>,
    steps: Appender<StepRow>,
    phases: Appender<PhaseRow>,
    comm: Appender<CommRow>,
    devices: Appender<DeviceRow>,
    gpus: Appender<GpuRow>,
    algorithms: Appender<AlgorithmRow>,
    learning: Appender<LearningRow>,
    norm_statistics: Appender<NormStatisticsRow>,
    collectives: Appender<CollectiveRow>,
    layers: Appender<LayerRow>,
    ceilings: Appender<CeilingRow>,
    compression: Appender<CompressionRow>,
    repeats_kept: usize,
}

impl Records {
    /// Appends one repeat to every file and hands it to the operating system. Files that not every kind of trial fills
    /// are made only when there are rows for them.
    ///
    /// # Errors
    /// [`FolderError::Io`] with what is kept; this repeat's rows are then in none of the files.
    pub fn append(&mut self, record: &RepeatRecord) -> Result<(), FolderError> {
        let before = self.lengths();
        match self.append_all(record) {
            Ok(()) => {
                self.repeats_kept += 1;
                Ok(())
            }
            Err(FolderError::Io {
                action,
                path,
                source,
                ..
            }) => {
                self.cut(before);
                let kept = Some(format!(
                    "the {} earlier repeats are kept, this one is lost",
                    self.repeats_kept
                ));
                Err(FolderError::Io {
                    action,
                    path,
                    source,
                    kept,
                })
            }
            Err(other) => Err(other),
        }
    }

    fn append_all(&mut self, record: &RepeatRecord) -> Result<(), FolderError> {
        self.steps.append(&record.steps)?;
        self.phases.append(&record.phases)?;
        self.comm.append(&record.comm)?;
        self.devices.append(&record.devices)?;
        self.gpus.append_some(&record.gpus)?;
        self.algorithms.append_some(&record.algorithms)?;
        self.learning.append_some(&record.learning)?;
        self.norm_statistics.append_some(&record.norm_statistics)?;
        self.collectives.append_some(&record.collectives)?;
        self.layers.append_some(&record.layers)?;
        self.ceilings.append_some(&record.ceilings)?;
        self.compression.append_some(&record.compression)?;
        self.repeats.append(std::slice::from_ref(&record.repeat))
    }

    fn lengths(&self) -> [u64; 13] {
        [
            self.steps.length(),
            self.phases.length(),
            self.comm.length(),
            self.devices.length(),
            self.gpus.length(),
            self.algorithms.length(),
            self.learning.length(),
            self.norm_statistics.length(),
            self.collectives.length(),
            self.layers.length(),
            self.ceilings.length(),
            self.compression.length(),
            self.repeats.length(),
        ]
    }

    fn cut(&mut self, lengths: [u64; 13]) {
        let [
            steps,
            phases,
            comm,
            devices,
            gpus,
            algorithms,
            learning,
            norm_statistics,
            collectives,
            layers,
            ceilings,
            compression,
            repeats,
        ] = lengths;
        self.steps.cut(steps);
        self.phases.cut(phases);
        self.comm.cut(comm);
        self.devices.cut(devices);
        self.gpus.cut(gpus);
        self.algorithms.cut(algorithms);
        self.learning.cut(learning);
        self.norm_statistics.cut(norm_statistics);
        self.collectives.cut(collectives);
        self.layers.cut(layers);
        self.ceilings.cut(ceilings);
        self.compression.cut(compression);
        self.repeats.cut(repeats);
    }
}
