//! Looking for libraries, in directories that tests make; none of NVIDIA's is needed.
use std::fs;
use std::sync::Mutex;

use super::*;

/// A directory with an empty file for each path.
fn laid_out(paths: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for path in paths {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "not a library").unwrap();
    }
    folder
}

/// Why `library` cannot be used by what lies in `directories`; `None` where this machine has it installed all the same.
fn refused(library: Library, directories: &[&Path]) -> Option<String> {
    // The loader is asked last, and what it has is none of these tests' business.
    if open_file(Path::new(library.soname())).is_ok() {
        eprintln!("skipped: {} is on the loader's paths", library.soname());
        return None;
    }
    let directories: Vec<PathBuf> = directories.iter().map(|path| path.to_path_buf()).collect();
    let missing = look_for(library, &directories).map(|loaded| loaded.found);
    Some(missing.expect_err("nothing can be loaded").reason)
}

#[test]
fn a_library_that_is_nowhere_is_missing_with_where_was_looked() {
    let folder = laid_out(&[]);
    let Some(reason) = refused(Library::Nvrtc, &[folder.path()]) else {
        return;
    };
    let looked = format!("not in {}; ", folder.path().display());
    assert!(reason.starts_with(&looked), "{reason}");
    assert!(
        reason.contains("libnvrtc.so.13: cannot open shared object file"),
        "{reason}"
    );
}

#[test]
fn a_file_that_is_no_library_is_named_with_what_the_loader_says() {
    let folder = laid_out(&["nvidia/cu13/lib/libcublas.so.13"]);
    let Some(reason) = refused(Library::Cublas, &[folder.path()]) else {
        return;
    };
    let file = folder.path().join("nvidia/cu13/lib/libcublas.so.13");
    assert!(
        reason.contains(&format!("{}: ", file.display())),
        "{reason}"
    );
    assert!(
        reason.contains("file too short") || reason.contains("invalid ELF header"),
        "{reason}"
    );
}

#[test]
fn each_directory_is_looked_at_in_its_order() {
    let first = laid_out(&["libnccl.so.2"]);
    let second = laid_out(&["nvidia/nccl/lib/libnccl.so.2"]);
    let Some(reason) = refused(Library::Nccl, &[first.path(), second.path()]) else {
        return;
    };
    let at = |folder: &tempfile::TempDir| {
        let folder = folder.path().display().to_string();
        reason.find(&folder).expect("both were tried")
    };
    assert!(at(&first) < at(&second), "{reason}");
}

#[test]
fn a_library_that_is_another_one_cannot_be_used() {
    // The C library stands for a file that loads and is not what its name says.
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: `getpid` is a function of the C library, and `info` is read only where it was filled.
    let path = unsafe {
        assert_ne!(
            libc::dladdr(libc::getpid as *const c_void, info.as_mut_ptr()),
            0
        );
        CStr::from_ptr(info.assume_init().dli_fname)
    };
    let path = fs::canonicalize(Path::new(path.to_str().unwrap())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(path, folder.path().join("libcudnn.so.9")).unwrap();
    let missing = look_for(Library::Cudnn, &[folder.path().to_path_buf()])
        .map(|loaded| loaded.found)
        .expect_err("it is no cuDNN");
    assert_eq!(missing.reason, "it has no function cudnnGetVersion");
}

#[test]
fn a_directory_itself_its_lib_and_its_wheels_are_searched() {
    let soname = Library::Cudnn.soname();
    let places = [
        "libcudnn.so.9",
        "lib/libcudnn.so.9",
        "nvidia/cu13/lib/libcudnn.so.9",
        "nvidia/cudnn/lib/libcudnn.so.9",
    ];
    let folder = laid_out(&places);
    let expected: Vec<PathBuf> = places.iter().map(|at| folder.path().join(at)).collect();
    assert_eq!(candidates(folder.path(), soname), expected);
    assert!(candidates(&folder.path().join("gone"), soname).is_empty());
}

#[test]
fn what_is_missing_says_what_to_install() {
    let missing = |library| Missing {
        library,
        reason: "gone".into(),
    };
    let cudnn = missing(Library::Cudnn);
    assert_eq!(cudnn.to_string(), "cuDNN: gone");
    for word in [SCRIPT, VARIABLE, "nvidia-cudnn-cu13", "libcudnn.so.9"] {
        assert!(cudnn.help().contains(word), "{}", cudnn.help());
    }
    for of_the_driver in [Library::Driver, Library::Nvml] {
        assert!(missing(of_the_driver).help().contains("NVIDIA's driver"));
    }
}

#[test]
fn an_answer_is_kept_whichever_thread_asks_first() {
    let answers = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| answers.lock().unwrap().push(find(Library::Driver)));
        }
    });
    let answers = answers.into_inner().unwrap();
    assert!(answers.iter().all(|answer| *answer == answers[0]));
}
