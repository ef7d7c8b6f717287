//! The environment in which several ranks share one GPU: to see that results are right, not how fast they come.
//!
//! Contract: NCCL refuses two ranks of one host on one GPU. Ranks that say that their hosts differ pass, and then talk over sockets: one
//! process per rank, some milliseconds a call, no statement about performance. The kernels of all ranks wait for each other on the one
//! GPU, so that a kernel that fills it can keep them apart for good: synchronize between such kernels and collectives.
//! Reference: NCCL user guide, "Environment Variables".

/// The variables of rank `rank` where several ranks share a GPU; set them before the process starts.
///
/// With `pinned`, for who compares bytes with formulas: the algorithm is the ring, with the protocol that sends no flags beside data, and
/// nothing else of NCCL's talks over the interface.
pub fn one_gpu(rank: usize, pinned: bool) -> Vec<(&'static str, String)> {
    let mut variables = vec![("NCCL_HOSTID", format!("rank{rank}"))];
    let fixed = [
        ("NCCL_NET", "Socket"),
        ("NCCL_SOCKET_IFNAME", "lo"),
        ("NCCL_P2P_DISABLE", "1"),
        ("NCCL_SHM_DISABLE", "1"),
        ("NCCL_IB_DISABLE", "1"),
        ("NCCL_MNNVL_ENABLE", "0"),
    ];
    let pins = [
        ("NCCL_ALGO", "Ring"),
        ("NCCL_PROTO", "Simple"),
        ("NCCL_RAS_ENABLE", "0"),
    ];
    let pins: &[_] = if pinned { &pins } else { &[] };
    let all = fixed.iter().chain(pins);
    variables.extend(all.map(|(name, value)| (*name, (*value).to_owned())));
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_differ_by_their_host_only() {
        let (zero, one) = (one_gpu(0, true), one_gpu(1, true));
        assert_eq!(zero[0], ("NCCL_HOSTID", "rank0".to_owned()));
        assert_eq!(one[0], ("NCCL_HOSTID", "rank1".to_owned()));
        assert_eq!(zero[1..], one[1..]);
        let names: Vec<_> = zero.iter().map(|(name, _)| *name).collect();
        assert_eq!(
            names,
            [
                "NCCL_HOSTID",
                "NCCL_NET",
                "NCCL_SOCKET_IFNAME",
                "NCCL_P2P_DISABLE",
                "NCCL_SHM_DISABLE",
                "NCCL_IB_DISABLE",
                "NCCL_MNNVL_ENABLE",
                "NCCL_ALGO",
                "NCCL_PROTO",
                "NCCL_RAS_ENABLE",
            ]
        );
        assert_eq!(one_gpu(0, false)[..], zero[..7]);
    }
}
