//! How each figure of a report is defined, in the words that every report carries.
use crate::document::Block;

const DEFINITIONS: [&str; 13] = [
    "Step: starts when the loop asks for a batch in host memory and ends when every rank's optimizer update is complete on its device. It \
     includes data wait, host-to-device copy, forward, loss, backward, communication, optimizer and zeroing; it leaves out loss read-back, \
     evaluation and recording.",
    "Step time and samples/s: from the whole window, from a barrier until the last rank finishes, over its steps and samples, with no \
     synchronization of the host per step. Step times of single steps are distribution data and never the headline.",
    "Repeats are blocks: within a block all trials run once, in a recorded random order and in fresh processes. The figure of a trial is the \
     median over its repeats.",
    "Interval: a 95 % bootstrap over blocks (expanded percentile interval of the median, 4000 resamples, fixed seed). Below 6 repeats the \
     smallest and largest repeat are given instead, and no verdict. Intervals of several comparisons are not corrected for their number: of \
     twenty comparisons without any difference, one is expected to look like one.",
    "Ratios, efficiencies and verdicts: taken within blocks first, then the median and interval over blocks. A difference is claimed only if \
     the interval leaves out 1.",
    "Efficiency against single: throughput over N times that of single on one device with the same work. Against independent: throughput over \
     that of N replicas on the same N devices that never synchronize, launched alike (DP counts as threads), so what the hardware loses by running N at once is not blamed on the \
     strategy.",
    "Exposed communication: step time minus that of the same step with synchronization switched off, both measured in the same repeat. It can \
     be negative by chance where communication is hidden.",
    "Bytes, three ways: predicted sums the actual chunks of the named algorithm; counted is taken at our own copies and system calls; measured \
     comes from a counter that is not ours (kernel or device). Shared memory and copies have no independent counter, and none is claimed. Sent \
     means written for others or read by others; over all ranks, sent equals received.",
    "Memory: the peak of what the engine itself allocated on a device, by category.",
    "Phases and timelines: from a separate traced pass; its slowdown against the window is printed.",
    "Gates: before any timing, every trial that exchanges anything is checked against a single-device reference (single and independent replicas \
     exchange nothing), on GPUs in fp32 with cuBLAS, whatever precision and library it has; a trial that fails is invalid and shows no figures. Unsteady: the first and last third of a window differ by more than 2 %; \
     smoke sizes are exempt. Outliers are never dropped.",
    "Learning: the error is the share of labels that are not the largest logit, after the last step, never at the best one. Stored statistics are the running ones of \
     training; batch statistics those of the evaluated samples, as many together as in training; PreciseBN's are averages over training batches, taken after the last \
     step with weights as they are. Errors of two norms are subtracted within repeats, which share initial parameters and order; a difference is claimed only if \
     its interval leaves out 0.",
    "Disturbed: in the window or in the pass without synchronization, other programs or the kernel's own work used more than 2 % of a rank's core, or the hypervisor took more than 1 % of it \
     away; or a GPU had another process on it, was held back by heat or its hardware in more than 2 % of the samples, or had a clock whose mean was more than 5 % lower in one third of the \
     pass than in another. A trial is disturbed if more than a third of its repeats are; its figures are shown with that label, and no verdict is drawn from them. Smoke \
     sizes are exempt, but warned of. Load on cores that no rank has is not seen, though it shares caches, memory and power with them.",
];

/// The section.
pub(super) fn section() -> Vec<Block> {
    let items = DEFINITIONS.iter().map(|text| (*text).to_string()).collect();
    vec![
        Block::heading(1, "How each figure is defined"),
        Block::List {
            ordered: false,
            items,
        },
    ]
}
