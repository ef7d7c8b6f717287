use super::*;

fn find_with(wanted: LauncherArg, variables: &[(&str, &str)]) -> Result<Start, VariableError> {
    let lookup = |name: &str| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    find(wanted, &lookup)
}

fn place_of(variables: &[(&str, &str)]) -> Place {
    match find_with(LauncherArg::Auto, variables).unwrap() {
        Start::Agent(place) => place,
        Start::Ordinary(_) => panic!("no launcher was found in {variables:?}"),
    }
}

fn complaint(variables: &[(&str, &str)]) -> String {
    find_with(LauncherArg::Auto, variables)
        .unwrap_err()
        .to_string()
}

const TORCHRUN: [(&str, &str); 7] = [
    ("RANK", "3"),
    ("WORLD_SIZE", "4"),
    ("LOCAL_RANK", "1"),
    ("LOCAL_WORLD_SIZE", "2"),
    ("MASTER_ADDR", "node0"),
    ("MASTER_PORT", "29500"),
    ("TORCHELASTIC_RUN_ID", "77"),
];

#[test]
fn torchrun_says_everything() {
    let place = place_of(&TORCHRUN);
    assert_eq!(
        (place.family, place.rank, place.world_size),
        (Family::Torchrun, 3, 4)
    );
    assert_eq!((place.local_rank, place.one_host), (Some(1), false));
    assert_eq!((place.master.as_str(), place.port), ("node0", 29501));
}

#[test]
fn open_mpi_needs_no_master_on_one_host_and_one_on_several() {
    let mpi = |local_size| {
        [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "0"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", local_size),
        ]
    };
    let place = place_of(&mpi("2"));
    assert_eq!((place.master.as_str(), place.port), ("127.0.0.1", 29501));
    let complaint = complaint(&mpi("1"));
    assert!(
        complaint.starts_with("MASTER_ADDR is not set and not all processes"),
        "{complaint}"
    );
}

#[test]
fn srun_finds_rank_0_on_the_first_host_of_its_step() {
    let place = place_of(&[
        ("SLURM_PROCID", "5"),
        ("SLURM_NTASKS", "16"),
        ("SLURM_STEP_NUM_TASKS", "8"),
        ("SLURM_STEP_NUM_NODES", "4"),
        ("SLURM_STEP_NODELIST", "cpu[011-014]"),
        ("SLURM_LOCALID", "1"),
    ]);
    assert_eq!(
        (place.family, place.rank, place.world_size),
        (Family::Slurm, 5, 8)
    );
    assert_eq!(place.master, "cpu011");
    let complaint = complaint(&[
        ("SLURM_PROCID", "1"),
        ("SLURM_STEP_NUM_TASKS", "2"),
        ("SLURM_STEP_NODELIST", "cpu["),
    ]);
    assert!(
        complaint.contains("SLURM_STEP_NODELIST, which is \"cpu[\""),
        "{complaint}"
    );
}

#[test]
fn a_shell_inside_an_allocation_is_an_ordinary_run() {
    let batch = [
        ("SLURM_PROCID", "0"),
        ("SLURM_NTASKS", "4"),
        ("SLURM_LOCALID", "0"),
    ];
    let Ok(Start::Ordinary(Some(note))) = find_with(LauncherArg::Auto, &batch) else {
        panic!("a batch script is no step");
    };
    assert!(note.contains("start it with srun"), "{note}");
    for id in SLURM_SHELLS {
        let shell = [
            ("SLURM_PROCID", "0"),
            ("SLURM_NTASKS", "4"),
            ("SLURM_STEP_ID", id),
            ("SLURM_STEP_NODELIST", "a[1-4]"),
        ];
        assert!(matches!(
            find_with(LauncherArg::Auto, &shell),
            Ok(Start::Ordinary(Some(_)))
        ));
    }
    let forced = [
        ("SLURM_PROCID", "0"),
        ("SLURM_NTASKS", "4"),
        ("SLURM_NNODES", "1"),
    ];
    assert!(matches!(
        find_with(LauncherArg::Slurm, &forced),
        Ok(Start::Agent(_))
    ));
}

#[test]
fn the_innermost_launcher_counts() {
    let srun = [
        ("SLURM_PROCID", "0"),
        ("SLURM_STEP_NUM_TASKS", "2"),
        ("SLURM_STEP_NODELIST", "a[1-2]"),
        ("PMI_RANK", "0"),
        ("PMI_SIZE", "2"),
    ];
    assert_eq!(place_of(&srun).family, Family::Slurm);
    let inside =
        |more: &[(&'static str, &'static str)]| place_of(&[&srun[..], more].concat()).family;
    let mpi = [
        ("OMPI_COMM_WORLD_RANK", "1"),
        ("OMPI_COMM_WORLD_SIZE", "2"),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
    ];
    assert_eq!(inside(&mpi), Family::OpenMpi);
    assert_eq!(
        inside(&[&mpi[..], &TORCHRUN[..]].concat()),
        Family::Torchrun
    );
    let found = find_with(LauncherArg::Mpi, &[&mpi[..], &TORCHRUN[..]].concat()).unwrap();
    assert!(matches!(found, Start::Agent(place) if place.family == Family::OpenMpi));
    assert_eq!(
        find_with(LauncherArg::None, &TORCHRUN),
        Ok(Start::Ordinary(None))
    );
}

#[test]
fn a_world_of_one_and_no_variables_are_ordinary_runs() {
    assert_eq!(find_with(LauncherArg::Auto, &[]), Ok(Start::Ordinary(None)));
    let one = [("RANK", "0"), ("WORLD_SIZE", "1")];
    assert_eq!(
        find_with(LauncherArg::Auto, &one),
        Ok(Start::Ordinary(None))
    );
}

#[test]
fn wrong_variables_are_named_with_what_they_hold() {
    let cases: [(&[(&str, &str)], &str); 9] = [
        (
            &[("RANK", "1")],
            "RANK is set to \"1\" but WORLD_SIZE is not set; torchrun sets both",
        ),
        (
            &[("OMPI_COMM_WORLD_SIZE", "2")],
            "OMPI_COMM_WORLD_SIZE is set to \"2\" but OMPI_COMM_WORLD_RANK is not set; Open MPI's mpirun sets both",
        ),
        (
            &[("RANK", "two"), ("WORLD_SIZE", "2")],
            "RANK is \"two\", not a whole number; torchrun sets it to the rank of the process, from 0",
        ),
        (
            &[("RANK", "0"), ("WORLD_SIZE", "-1")],
            "WORLD_SIZE is \"-1\", not a whole number; torchrun sets it to the number of processes",
        ),
        (
            &[("RANK", "2"), ("WORLD_SIZE", "2")],
            "RANK is 2 but WORLD_SIZE is 2: ranks count from 0 to one below the number of processes; torchrun sets both",
        ),
        (
            &[
                ("RANK", "0"),
                ("WORLD_SIZE", "2"),
                ("LOCAL_RANK", "2"),
                ("LOCAL_WORLD_SIZE", "2"),
            ],
            "LOCAL_RANK is 2 but LOCAL_WORLD_SIZE is 2: local ranks count from 0 to one below the number of processes on the host; torchrun sets both",
        ),
        (
            &[
                ("RANK", "0"),
                ("WORLD_SIZE", "2"),
                ("MASTER_ADDR", "a"),
                ("SYNCMARK_MASTER_PORT", "0"),
            ],
            "SYNCMARK_MASTER_PORT is \"0\", not a port between 1 and 65535",
        ),
        (
            &[
                ("RANK", "0"),
                ("WORLD_SIZE", "2"),
                ("MASTER_ADDR", "a"),
                ("MASTER_PORT", "65535"),
            ],
            "MASTER_PORT is \"65535\", not a port between 1 and 65534: syncmark's agents meet at the port above it, unless SYNCMARK_MASTER_PORT names another",
        ),
        (
            &[
                ("RANK", "0"),
                ("WORLD_SIZE", "2"),
                ("MASTER_ADDR", "a"),
                ("SYNCMARK_MEETING_TIMEOUT", "soon"),
            ],
            "SYNCMARK_MEETING_TIMEOUT is \"soon\", not a number of seconds of at least 1",
        ),
    ];
    for (variables, wanted) in cases {
        assert_eq!(complaint(variables), wanted);
    }
    let error = find_with(LauncherArg::Slurm, &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "--launcher slurm was given but SLURM_PROCID is not set; srun sets it for each process that it starts"
    );
}

#[test]
fn jobs_have_tokens_of_their_own() {
    let other: Vec<_> = TORCHRUN
        .iter()
        .map(|&(name, value)| {
            (
                name,
                if name == "TORCHELASTIC_RUN_ID" {
                    "78"
                } else {
                    value
                },
            )
        })
        .collect();
    assert_ne!(place_of(&TORCHRUN).token, place_of(&other).token);
    let named = |name| place_of(&[&TORCHRUN[..], &[("SYNCMARK_JOB_TOKEN", name)]].concat()).token;
    assert_eq!(named("a"), named("a"));
    assert_ne!(named("a"), named("b"));
    assert!(
        !named("secret-word").contains("secret-word"),
        "only its hash travels"
    );
}
