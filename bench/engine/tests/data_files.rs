//! Fashion-MNIST and CIFAR-10 from files in their published formats, which the tests make, and from Debian's package.
use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use syncmark_engine::data::{Dataset, FilesError, Pixels, Split, cifar10, fashion_mnist};
use syncmark_engine::shape::Shape;

/// An IDX file of unsigned bytes.
fn idx(dimensions: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, dimensions.len() as u8];
    dimensions
        .iter()
        .for_each(|size| bytes.extend(size.to_be_bytes()));
    bytes.extend(data);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
}

fn pixel(image: usize, at: usize) -> u8 {
    ((image * 131 + at * 7) % 256) as u8
}

/// Images and labels as they are published.
fn fashion(count: usize) -> (Vec<u8>, Vec<u8>) {
    let pixels: Vec<u8> = (0..count)
        .flat_map(|image| (0..784).map(move |at| pixel(image, at)))
        .collect();
    let labels: Vec<u8> = (0..count).map(|image| (image % 10) as u8).collect();
    (
        idx(&[count as u32, 28, 28], &pixels),
        idx(&[count as u32], &labels),
    )
}

fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).expect("written");
    }
    folder
}

const IMAGES: &str = "train-images-idx3-ubyte";
const LABELS: &str = "train-labels-idx1-ubyte";

fn refused(folder: &Path) -> String {
    let error = fashion_mnist::open(folder, Split::Train).expect_err("refused");
    error
        .to_string()
        .replace(&folder.display().to_string(), "DIR")
}

#[test]
fn fashion_mnist_is_read_compressed_or_not() {
    let ((images, labels), (few, theirs)) = (fashion(7), fashion(3));
    let plain = folder(&[(IMAGES, images.clone()), (LABELS, labels.clone())]);
    let compressed = folder(&[
        ("train-images-idx3-ubyte.gz", gzip(&images)),
        ("train-labels-idx1-ubyte.gz", gzip(&labels)),
        ("t10k-images-idx3-ubyte.gz", gzip(&few)),
        ("t10k-labels-idx1-ubyte", theirs),
    ]);
    for place in [plain.path(), compressed.path()] {
        assert!(fashion_mnist::is_in(place));
        let data = fashion_mnist::open(place, Split::Train).expect("read");
        assert_eq!((data.len(), data.classes()), (7, 10));
        assert_eq!(data.shape(), Shape::Image { c: 1, h: 28, w: 28 });
        let mut image = vec![0.0; 784];
        data.write(5, &mut image);
        for (at, value) in image.iter().enumerate() {
            assert!((value - f32::from(pixel(5, at)) / 255.0).abs() <= f32::EPSILON);
        }
        assert_eq!(data.label(5), 5);
    }
    let test = fashion_mnist::open(compressed.path(), Split::Test).expect("read");
    let all = fashion_mnist::open(compressed.path(), Split::All).expect("read");
    assert_eq!((test.len(), all.len(), all.label(8)), (3, 10, 1));
    assert!(matches!(
        fashion_mnist::open(plain.path(), Split::Test),
        Err(FilesError::Missing { .. })
    ));
}

#[test]
fn damaged_idx_files_are_refused_with_what_is_wrong() {
    let (images, labels) = fashion(4);
    let with = |images: Vec<u8>, labels: Vec<u8>| {
        let place = folder(&[(IMAGES, images), (LABELS, labels)]);
        refused(place.path())
    };
    let cut = with(images[..images.len() - 5].to_vec(), labels.clone());
    assert_eq!(
        cut,
        "DIR/train-images-idx3-ubyte holds 3131 bytes after the header, which says 3136; get the file again"
    );
    let longer = with([images.clone(), vec![0; 9]].concat(), labels.clone());
    assert_eq!(
        longer,
        "DIR/train-images-idx3-ubyte holds 3137 bytes after the header, which says 3136; get the file again"
    );
    let magic = with(labels.clone(), labels.clone());
    assert_eq!(
        magic,
        "DIR/train-images-idx3-ubyte begins with [00, 00, 08, 01], not with [00, 00, 08, 03]: \
         no IDX file of unsigned bytes with 3 dimensions; get the file again"
    );
    let digits = with(idx(&[4, 8, 8], &[0; 256]), labels.clone());
    assert_eq!(
        digits,
        "DIR/train-images-idx3-ubyte has dimensions [4, 8, 8], expected [any, 28, 28]; get the file again"
    );
    let huge = with(idx(&[u32::MAX, 28, 28], &[1, 2, 3]), labels.clone());
    assert_eq!(
        huge,
        "DIR/train-images-idx3-ubyte claims [4294967295, 28, 28] bytes, more than any such file holds; get the file again"
    );
    let eleventh = with(images.clone(), idx(&[4], &[0, 1, 10, 2]));
    assert_eq!(
        eleventh,
        "DIR/train-labels-idx1-ubyte value 10 at offset 2 is larger than 9; get the file again"
    );
    let unpaired = with(images.clone(), idx(&[3], &[0, 1, 2]));
    assert_eq!(
        unpaired,
        "DIR/train-images-idx3-ubyte has 4 images, DIR/train-labels-idx1-ubyte has 3 labels"
    );
    let empty = with(Vec::new(), labels);
    assert!(empty.contains("begins with [], not with"), "{empty}");
}

#[test]
fn damaged_compressed_files_are_refused() {
    let (images, labels) = fashion(4);
    let packed = gzip(&images);
    let with = |packed: Vec<u8>| {
        let place = folder(&[
            ("train-images-idx3-ubyte.gz", packed),
            (LABELS, labels.clone()),
        ]);
        refused(place.path())
    };
    // Also where only the checksum at the end is cut off.
    for cut in [packed.len() / 2, packed.len() - 3] {
        assert_eq!(
            with(packed[..cut].to_vec()),
            "DIR/train-images-idx3-ubyte.gz cannot be decompressed: it is cut off; get the file again"
        );
    }
    let mut damaged = packed.clone();
    let last = damaged.len() - 6;
    damaged[last] ^= 0x55;
    assert!(with(damaged).contains("cannot be decompressed"));
    // A small file that would fill the memory: nothing beyond what the header says is kept.
    let bomb = gzip(&idx(&[4, 28, 28], &vec![0; 64 << 20]));
    assert_eq!(
        with(bomb),
        "DIR/train-images-idx3-ubyte.gz holds 3137 bytes after the header, which says 3136; get the file again"
    );
}

/// A record of the binary version: every pixel says its channel and place.
fn record(label: u8) -> Vec<u8> {
    let mut record = vec![label];
    record.extend((0..3072_usize).map(|at| (at / 1024 * 80 + at % 64) as u8));
    record
}

fn cifar(files: usize) -> tempfile::TempDir {
    let names: Vec<String> = (1..=files).map(|k| format!("data_batch_{k}.bin")).collect();
    let mut contents: Vec<(&str, Vec<u8>)> = Vec::new();
    for (k, name) in names.iter().enumerate() {
        contents.push((name, [record(k as u8), record(9)].concat()));
    }
    contents.push(("test_batch.bin", record(3)));
    folder(&contents)
}

#[test]
fn cifar_10_is_read_from_its_binary_version() {
    let place = cifar(5);
    assert!(cifar10::is_in(place.path()) && !cifar10::is_python_version(place.path()));
    let data = cifar10::open(place.path(), Split::Train).expect("read");
    let all = cifar10::open(place.path(), Split::All).expect("read");
    let test = cifar10::open(place.path(), Split::Test).expect("read");
    assert_eq!((data.len(), all.len(), test.len()), (10, 11, 1));
    assert_eq!((test.label(0), data.classes()), (3, 10));
    assert_eq!(data.shape(), Shape::Image { c: 3, h: 32, w: 32 });
    let labels: Vec<i32> = (0..10).map(|index| data.label(index)).collect();
    assert_eq!(labels, [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]);
    let mut image = vec![0.0; 3072];
    data.write(1, &mut image);
    for at in 0..1024 {
        for channel in 0..3 {
            let expected = (channel * 80 + at % 64) as f32 / 255.0;
            assert!((image[at * 3 + channel] - expected).abs() <= f32::EPSILON);
        }
    }
}

#[test]
fn damaged_files_of_cifar_10_are_refused_with_what_is_wrong() {
    let refused = |name: &str, bytes: Vec<u8>| {
        let place = cifar(5);
        fs::write(place.path().join(name), bytes).expect("written");
        let error = cifar10::open(place.path(), Split::Train).expect_err("refused");
        error
            .to_string()
            .replace(&place.path().display().to_string(), "DIR")
    };
    let name = "data_batch_3.bin";
    assert_eq!(
        refused(name, record(1)[..3000].to_vec()),
        "DIR/data_batch_3.bin holds 3000 bytes, which is no whole number of records of 3073 bytes: \
         cut off, or not the binary version; get the file again"
    );
    assert!(refused(name, Vec::new()).contains("holds 0 bytes"));
    assert_eq!(
        refused(name, [record(2), record(10)].concat()),
        "DIR/data_batch_3.bin has label 10 in record 1, and labels end at 9: not the binary version; get the file again"
    );
    assert!(refused(name, gzip(&record(1))).contains("is compressed: extract"));
    let oversized = refused(name, vec![0; 3073 * 100_001]);
    assert!(
        oversized.contains("holds more than 307300000 bytes"),
        "{oversized}"
    );
    let missing = cifar(4);
    let error = cifar10::open(missing.path(), Split::Train).expect_err("refused");
    assert!(error.to_string().ends_with("data_batch_5.bin is missing"));
}

/// The real files, where Debian's package has installed them. SYNCMARK_REQUIRE_DATA=1 demands them.
#[test]
fn fashion_mnist_is_read_from_the_debian_package() {
    let place = Path::new(fashion_mnist::DEBIAN_FOLDER);
    if !fashion_mnist::is_in(place) {
        assert!(
            !std::env::var("SYNCMARK_REQUIRE_DATA").is_ok_and(|value| !value.is_empty()),
            "SYNCMARK_REQUIRE_DATA is set, but {} holds no Fashion-MNIST",
            place.display()
        );
        eprintln!(
            "skipped: {} holds no Fashion-MNIST (apt install dataset-fashion-mnist)",
            place.display()
        );
        return;
    }
    let train = fashion_mnist::open(place, Split::Train).expect("the package's files");
    let test = fashion_mnist::open(place, Split::Test).expect("the package's files");
    assert_eq!((train.len(), test.len()), (60_000, 10_000));
    // As published: ankle boot, T-shirt, T-shirt, dress, T-shirt; ankle boot, pullover, trouser, trouser, shirt.
    let first = |data: &Pixels| -> Vec<i32> { (0..5).map(|index| data.label(index)).collect() };
    assert_eq!(first(&train), [9, 0, 0, 3, 0]);
    assert_eq!(first(&test), [9, 2, 1, 1, 6]);
    for (data, each) in [(&train, 6000), (&test, 1000)] {
        let mut counts = [0; 10];
        (0..data.len()).for_each(|index| counts[data.label(index) as usize] += 1);
        assert_eq!(counts, [each; 10]);
    }
    // The published mean and deviation of the training pixels: 0.2860 and 0.3530.
    let (mut sum, mut squares, mut image) = (0.0, 0.0, vec![0.0; 784]);
    for index in 0..train.len() {
        train.write(index, &mut image);
        for value in &image {
            sum += f64::from(*value);
            squares += f64::from(*value).powi(2);
        }
    }
    let n = 60_000.0 * 784.0;
    let deviation = (squares / n - (sum / n).powi(2)).sqrt();
    assert!((sum / n - 0.2860).abs() < 5e-5 && (deviation - 0.3530).abs() < 5e-5);
}
