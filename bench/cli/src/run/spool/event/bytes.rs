//! An [`Event`]'s bytes, written and read: the numbers of kinds and the order of fields.
use super::{
    CeilingEvent, ChoicePiece, CommEvent, EVENT_BYTES, Event, Fields, GpuPlace, GpuState,
    GpuTraffic, LearningEvent,
};

impl Event {
    /// Bytes 0..8 hold the kind (u8) and small fields, the words follow from byte 8 on.
    pub(in crate::run::spool) fn encode(self, bytes: &mut [u8; EVENT_BYTES]) {
        bytes.fill(0);
        let mut f = Fields { bytes, at: 0 };
        match self {
            Self::Step {
                pass,
                step,
                start_ns,
                end_ns,
                samples,
            } => {
                f.put([1, pass, 0, 0, 0, 0, 0, 0])
                    .words(&[step, start_ns, end_ns, samples]);
            }
            Self::Pass {
                pass,
                steps,
                samples,
                start_ns,
                end_ns,
            } => {
                f.put([2, pass, 0, 0, 0, 0, 0, 0])
                    .words(&[steps, samples, start_ns, end_ns]);
            }
            Self::Warmup { steps } => {
                f.put([3, 0, 0, 0, 0, 0, 0, 0]).words(&[steps]);
            }
            Self::Span {
                device,
                track,
                phase,
                bucket,
                step,
                host_ns,
                device_ns,
            } => {
                f.put([4, track, phase, 0])
                    .put(device.to_le_bytes())
                    .put(bucket.to_le_bytes());
                f.words(&[step, host_ns[0], host_ns[1], device_ns[0], device_ns[1]]);
            }
            Self::Comm(comm) => comm.encode(5, &mut f),
            Self::Memory { device, bytes } => {
                f.put([6, 0])
                    .put(device.to_le_bytes())
                    .put([0; 4])
                    .words(&bytes);
            }
            Self::Loss { step, loss } => {
                f.put([7, 0, 0, 0, 0, 0, 0, 0])
                    .words(&[step, loss.to_bits()]);
            }
            Self::ParametersEqual { equal } => {
                f.put([8, u8::from(equal)]);
            }
            Self::Compression {
                bucket,
                step,
                relative_error,
                cosine,
                sent_bytes,
                uncompressed_bytes,
            } => {
                let counted = u8::from(sent_bytes.is_some());
                f.put([10, counted | u8::from(uncompressed_bytes.is_some()) << 1])
                    .put(bucket.to_le_bytes())
                    .put([0; 4])
                    .words(&[
                        step,
                        relative_error.to_bits(),
                        cosine.to_bits(),
                        sent_bytes.unwrap_or(0),
                        uncompressed_bytes.unwrap_or(0),
                    ]);
            }
            Self::Dispatch {
                step,
                dispatch_ns,
                upload_ns,
                device_ns,
            } => {
                f.put([11, 0, 0, 0, 0, 0, 0, 0])
                    .words(&[step, dispatch_ns, upload_ns, device_ns]);
            }
            Self::Measured { sent_bytes } => {
                f.put([9, 0, 0, 0, 0, 0, 0, 0]).words(&[sent_bytes]);
            }
            Self::Cores {
                device,
                cores,
                elapsed_ns,
                busy_ns,
                pinned_ns,
                elsewhere_ns,
                stolen_ns,
                involuntary_switches,
                pressure_ns,
            } => {
                f.put([40, 0])
                    .put(device.to_le_bytes())
                    .put(cores.to_le_bytes())
                    .put([0; 2]);
                f.words(&[elapsed_ns, busy_ns, pinned_ns, elsewhere_ns, stolen_ns])
                    .words(&[involuntary_switches, pressure_ns.unwrap_or(u64::MAX)]);
            }
            Self::GpuPlace(place) => place.encode(41, &mut f),
            Self::GpuState(state) => state.encode(42, &mut f),
            Self::GpuTraffic(traffic) => traffic.encode(43, &mut f),
            Self::Choice(piece) => piece.encode(45, &mut f),
            Self::GpuPeer { from, to, directly } => {
                f.put([44, u8::from(directly)])
                    .put(from.to_le_bytes())
                    .put(to.to_le_bytes());
            }
            Self::CollectiveTime {
                collective,
                algorithm,
                elements,
                size_bytes,
                iterations,
                time_ns,
            } => {
                f.put([20, collective, algorithm, 0, 0, 0, 0, 0])
                    .words(&[elements, size_bytes, iterations])
                    .words(&time_ns);
            }
            Self::CollectiveCheck {
                collective,
                elements,
                wrong,
                calls,
                sent_bytes,
                measured_sent_bytes,
            } => {
                let (counted, measured) = (sent_bytes.is_some(), measured_sent_bytes.is_some());
                f.put([21, collective, u8::from(measured), u8::from(counted)])
                    .put([0; 4])
                    .words(&[elements, wrong, calls, sent_bytes.unwrap_or(0)])
                    .words(&[measured_sent_bytes.unwrap_or(0)]);
            }
            Self::NodeTime {
                node,
                backward,
                calls,
                time_ns,
            } => {
                f.put([22, u8::from(backward), 0, 0])
                    .put(node.to_le_bytes())
                    .words(&[calls])
                    .words(&time_ns);
            }
            Self::Ceiling(ceiling) => ceiling.encode(23, &mut f),
            Self::Learning(learning) => learning.encode(30, &mut f),
            Self::LearningEnd {
                step,
                train_eval,
                dropout,
                precise,
            } => {
                f.put([31, 0, 0, 0, 0, 0, 0, 0]).words(&[step]);
                f.words(&train_eval.map(f64::to_bits))
                    .words(&dropout.map(f64::to_bits))
                    .words(&precise.map(f64::to_bits));
            }
            Self::NormStatistics {
                layer,
                channels,
                step,
                values,
                batches,
                mean_noise,
                variance_noise,
            } => {
                f.put([32, 0])
                    .put(layer.to_le_bytes())
                    .put(channels.to_le_bytes())
                    .words(&[step, values.to_bits(), batches])
                    .words(&[mean_noise, variance_noise].map(f64::to_bits));
            }
        }
    }

    pub(in crate::run::spool) fn decode(bytes: &[u8; EVENT_BYTES]) -> Option<Self> {
        let mut f = Fields { bytes, at: 1 };
        Some(match bytes[0] {
            1 => {
                let pass = f.u8();
                f.at = 8;
                Self::Step {
                    pass,
                    step: f.u64(),
                    start_ns: f.u64(),
                    end_ns: f.u64(),
                    samples: f.u64(),
                }
            }
            2 => {
                let pass = f.u8();
                f.at = 8;
                Self::Pass {
                    pass,
                    steps: f.u64(),
                    samples: f.u64(),
                    start_ns: f.u64(),
                    end_ns: f.u64(),
                }
            }
            3 => {
                f.at = 8;
                Self::Warmup { steps: f.u64() }
            }
            4 => {
                let (track, phase) = (f.u8(), f.u8());
                f.at = 4;
                Self::Span {
                    track,
                    phase,
                    device: f.u16(),
                    bucket: f.u16(),
                    step: f.u64(),
                    host_ns: [f.u64(), f.u64()],
                    device_ns: [f.u64(), f.u64()],
                }
            }
            5 => Self::Comm(CommEvent::decode(&mut f)),
            6 => {
                f.at = 2;
                let device = f.u16();
                f.at = 8;
                Self::Memory {
                    device,
                    bytes: std::array::from_fn(|_| f.u64()),
                }
            }
            7 => {
                f.at = 8;
                Self::Loss {
                    step: f.u64(),
                    loss: f64::from_bits(f.u64()),
                }
            }
            8 => Self::ParametersEqual { equal: f.u8() != 0 },
            10 => {
                let counted = f.u8();
                f.at = 2;
                let bucket = f.u16();
                f.at = 8;
                Self::Compression {
                    bucket,
                    step: f.u64(),
                    relative_error: f64::from_bits(f.u64()),
                    cosine: f64::from_bits(f.u64()),
                    sent_bytes: Some(f.u64()).filter(|_| counted & 1 != 0),
                    uncompressed_bytes: Some(f.u64()).filter(|_| counted & 2 != 0),
                }
            }
            9 => {
                f.at = 8;
                Self::Measured {
                    sent_bytes: f.u64(),
                }
            }
            11 => {
                f.at = 8;
                Self::Dispatch {
                    step: f.u64(),
                    dispatch_ns: f.u64(),
                    upload_ns: f.u64(),
                    device_ns: f.u64(),
                }
            }
            20 => {
                let (collective, algorithm) = (f.u8(), f.u8());
                f.at = 8;
                Self::CollectiveTime {
                    collective,
                    algorithm,
                    elements: f.u64(),
                    size_bytes: f.u64(),
                    iterations: f.u64(),
                    time_ns: std::array::from_fn(|_| f.u64()),
                }
            }
            21 => {
                let (collective, measured, counted) = (f.u8(), f.u8() != 0, f.u8() != 0);
                f.at = 8;
                Self::CollectiveCheck {
                    collective,
                    elements: f.u64(),
                    wrong: f.u64(),
                    calls: f.u64(),
                    sent_bytes: Some(f.u64()).filter(|_| counted),
                    measured_sent_bytes: Some(f.u64()).filter(|_| measured),
                }
            }
            22 => {
                let backward = f.u8() != 0;
                f.at = 4;
                Self::NodeTime {
                    node: f.u32(),
                    backward,
                    calls: f.u64(),
                    time_ns: std::array::from_fn(|_| f.u64()),
                }
            }
            23 => Self::Ceiling(CeilingEvent::decode(&mut f)),
            30 => Self::Learning(LearningEvent::decode(&mut f)),
            31 => {
                f.at = 8;
                Self::LearningEnd {
                    step: f.u64(),
                    train_eval: std::array::from_fn(|_| f64::from_bits(f.u64())),
                    dropout: std::array::from_fn(|_| f64::from_bits(f.u64())),
                    precise: std::array::from_fn(|_| f64::from_bits(f.u64())),
                }
            }
            32 => {
                f.at = 2;
                Self::NormStatistics {
                    layer: f.u16(),
                    channels: f.u32(),
                    step: f.u64(),
                    values: f64::from_bits(f.u64()),
                    batches: f.u64(),
                    mean_noise: f64::from_bits(f.u64()),
                    variance_noise: f64::from_bits(f.u64()),
                }
            }
            40 => {
                f.at = 2;
                let (device, cores) = (f.u16(), f.u16());
                f.at = 8;
                Self::Cores {
                    device,
                    cores,
                    elapsed_ns: f.u64(),
                    busy_ns: f.u64(),
                    pinned_ns: f.u64(),
                    elsewhere_ns: f.u64(),
                    stolen_ns: f.u64(),
                    involuntary_switches: f.u64(),
                    pressure_ns: Some(f.u64()).filter(|ns| *ns != u64::MAX),
                }
            }
            41 => Self::GpuPlace(GpuPlace::decode(&mut f)),
            42 => Self::GpuState(GpuState::decode(&mut f)),
            43 => Self::GpuTraffic(GpuTraffic::decode(&mut f)),
            44 => Self::GpuPeer {
                directly: f.u8() != 0,
                from: f.u16(),
                to: f.u16(),
            },
            45 => Self::Choice(ChoicePiece::decode(&mut f)),
            _ => return None,
        })
    }
}
