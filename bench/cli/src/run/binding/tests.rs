//! A made-up machine: two sockets, four GPUs, an adapter behind the switch of one of them.
use std::os::unix::fs::symlink;

use super::*;

const NEAR: &str = "0000:1b:00.0";
const BESIDE: &str = "0000:1c:00.0";
const FAR: &str = "0000:9b:00.0";

/// Folders as sysfs lays them out: what the classes and the bus list are links into `sys/devices`.
fn machine() -> (tempfile::TempDir, Root) {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    let device = |way: &str, node: &str, cores: &str| {
        let real = at(&format!("sys/devices/{way}"));
        std::fs::create_dir_all(&real).unwrap();
        std::fs::write(real.join("numa_node"), node).unwrap();
        std::fs::write(real.join("local_cpulist"), cores).unwrap();
        std::fs::create_dir_all(at("sys/bus/pci/devices")).unwrap();
        let name = real.file_name().unwrap();
        symlink(&real, at("sys/bus/pci/devices").join(name)).unwrap();
    };
    let adapter = |class: &str, name: &str, way: &str| {
        let entry = at(&format!("sys/class/{class}/{name}"));
        std::fs::create_dir_all(&entry).unwrap();
        symlink(at(&format!("sys/devices/{way}")), entry.join("device")).unwrap();
    };
    device(
        &format!("pci0000:17/0000:17:01.0/0000:18:00.0/{NEAR}"),
        "0\n",
        "0-3,8-11\n",
    );
    device(
        &format!("pci0000:17/0000:17:01.0/0000:19:00.0/{BESIDE}"),
        "0\n",
        "0-3,8-11\n",
    );
    device(
        &format!("pci0000:97/0000:97:01.0/{FAR}"),
        "1\n",
        "4-7,12-15\n",
    );
    device(
        "pci0000:17/0000:17:01.0/0000:18:00.0/0000:1d:00.0",
        "0\n",
        "0-3,8-11\n",
    );
    device("pci0000:00/0000:00:1f.6", "0\n", "0-3,8-11\n");
    adapter("net", "eno1", "pci0000:00/0000:00:1f.6");
    adapter(
        "net",
        "ib0",
        "pci0000:17/0000:17:01.0/0000:18:00.0/0000:1d:00.0",
    );
    adapter(
        "infiniband",
        "mlx5_0",
        "pci0000:17/0000:17:01.0/0000:18:00.0/0000:1d:00.0",
    );
    // Not a device: it has no link.
    std::fs::create_dir_all(at("sys/class/net/lo")).unwrap();
    let root = Root::at(folder.path());
    (folder, root)
}

#[test]
fn node_cores_and_the_nearest_adapter_are_read_from_sysfs() {
    let (_folder, root) = machine();
    let expected = Locality {
        node: Some(0),
        cores: vec![0, 1, 2, 3, 8, 9, 10, 11],
        network: Some("ib0".into()),
        rdma: Some("mlx5_0".into()),
    };
    assert_eq!(locality(&root, NEAR), expected, "behind one switch");
    assert_eq!(locality(&root, BESIDE), expected, "under one host bridge");
    let far = locality(&root, FAR);
    assert_eq!((far.node, far.cores.len()), (Some(1), 8));
    assert_eq!((far.network, far.rdma), (None, None), "none of its socket");
    assert_eq!(locality(&root, "0000:00:00.0"), Locality::default());
}

#[test]
fn an_adapter_of_the_node_is_near_where_none_shares_a_bridge() {
    let (folder, root) = machine();
    std::fs::remove_dir_all(folder.path().join("sys/class/net/ib0")).unwrap();
    assert_eq!(locality(&root, NEAR).network.as_deref(), Some("eno1"));
    assert_eq!(locality(&root, FAR).network, None);
}

#[test]
fn without_a_node_no_core_is_near() {
    let (folder, root) = machine();
    let gpu = folder.path().join(format!("sys/bus/pci/devices/{NEAR}"));
    std::fs::write(gpu.join("numa_node"), "-1\n").unwrap();
    let found = locality(&root, NEAR);
    assert_eq!((found.node, found.cores), (None, Vec::new()));
}

fn near(cores: std::ops::Range<usize>) -> Locality {
    Locality {
        node: Some(0),
        cores: cores.collect(),
        ..Locality::default()
    }
}

#[test]
fn devices_get_their_share_of_their_own_nodes_cores() {
    let all: Vec<usize> = (0..16).collect();
    let two_by_two = [near(0..8), near(8..16), near(0..8), near(8..16)];
    assert_eq!(
        assign(&two_by_two, 1, &all),
        [[0, 1, 2, 3], [8, 9, 10, 11], [4, 5, 6, 7], [12, 13, 14, 15]]
    );
    let eight = vec![near(0..8); 8];
    assert_eq!(assign(&eight, 1, &all).concat(), (0..8).collect::<Vec<_>>());
    assert_eq!(assign(&[near(8..16)], 6, &all), [[8, 9, 10, 11, 12, 13]]);
    assert_eq!(
        assign(&[near(8..16)], 1, &[0, 9]),
        [[9]],
        "what the run was given"
    );
}

#[test]
fn what_the_node_has_not_comes_from_elsewhere() {
    let all: Vec<usize> = (0..4).collect();
    assert_eq!(assign(&[near(8..16)], 1, &all), [[0, 1, 2, 3]]);
    assert_eq!(assign(&[near(0..1), near(0..1)], 1, &all), [[0], [1]]);
    assert_eq!(
        assign(&[near(0..2), near(0..2), near(0..2)], 1, &[0, 1]),
        [[0], [1], [0]],
        "more devices than cores share them in turn"
    );
    let unknown = [Locality::default(), Locality::default()];
    assert_eq!(assign(&unknown, 1, &all), [[0, 1], [2, 3]]);
}

#[test]
fn why_a_device_is_not_bound() {
    let all: Vec<usize> = (0..16).collect();
    let why = |near: &Locality, cores: &[usize], off| unbound(near, cores, &all, 2, off);
    assert_eq!(why(&near(0..8), &[0, 1], false), None);
    assert_eq!(why(&near(0..8), &[0, 9], false), Some(Unbound::Elsewhere));
    assert_eq!(why(&near(0..8), &[9], true), Some(Unbound::Asked));
    assert_eq!(why(&near(16..20), &[9], false), Some(Unbound::NoneInCommon));
    assert_eq!(
        why(&Locality::default(), &[9], false),
        Some(Unbound::NotKnown)
    );
    assert_eq!(
        unbound(&Locality::default(), &[9], &all, 1, false),
        None,
        "one node is always the right one"
    );
    for number in 1..=4 {
        assert_eq!(Unbound::numbered(number).unwrap() as u8, number);
    }
    assert_eq!(Unbound::numbered(0), None);
}
