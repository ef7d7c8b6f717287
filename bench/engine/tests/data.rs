//! Data sets and the loader.
use std::path::PathBuf;
use std::sync::Arc;

use syncmark_engine::data::{
    Ahead, Batches, Dataset, Digits, DigitsError, IdxError, Loader, LoaderError, Random, Sampler,
    Sequential, Split, Synthetic,
};
use syncmark_engine::shape::Shape;

fn files() -> (Vec<u8>, Vec<u8>) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../scenarios/data");
    let read = |name: &str| std::fs::read(folder.join(name)).expect("the digits are in the tree");
    (
        read("digits.images.idx3-ubyte"),
        read("digits.labels.idx1-ubyte"),
    )
}

fn digits(split: Split) -> Digits {
    let (images, labels) = files();
    Digits::parse(&images, &labels, split).expect("the digits")
}

#[test]
fn digits_are_split_by_position_and_scaled_to_one() {
    let (train, test, all) = (
        digits(Split::Train),
        digits(Split::Test),
        digits(Split::All),
    );
    assert_eq!((train.len(), test.len(), all.len()), (1437, 360, 1797));
    assert_eq!(
        (all.shape(), all.classes()),
        (Shape::Image { c: 1, h: 8, w: 8 }, 10)
    );
    // The first row of the first image and its label, as scikit-learn prints them.
    let mut image = [0.0; 64];
    all.write(0, &mut image);
    assert_eq!(
        image[..8].iter().map(|v| v * 16.0).collect::<Vec<_>>(),
        [0.0, 0.0, 5.0, 13.0, 9.0, 1.0, 0.0, 0.0]
    );
    assert_eq!(
        (0..10).map(|i| all.label(i)).collect::<Vec<_>>(),
        (0..10).collect::<Vec<_>>()
    );
    let (mut whole, mut part) = ([0.0; 64], [0.0; 64]);
    for i in [0, 359] {
        all.write(1437 + i, &mut whole);
        test.write(i, &mut part);
        assert_eq!((whole, all.label(1437 + i)), (part, test.label(i)));
    }
    assert!((0..all.len()).all(|i| (0..10).contains(&all.label(i))));
}

#[test]
fn bytes_that_are_not_the_digits_are_refused_with_what_is_wrong() {
    let (images, labels) = files();
    let parse = |images: &[u8], labels: &[u8]| {
        Digits::parse(images, labels, Split::All)
            .map(|_| ())
            .expect_err("refused")
    };
    let error = |file: &'static str, source: IdxError| DigitsError { file, source };
    let magic = |found: &[u8], dimensions: u8| IdxError::Magic {
        found: found.to_vec(),
        expected: [0, 0, 8, dimensions],
    };
    assert_eq!(
        parse(&labels, &labels),
        error("images", magic(&[0, 0, 8, 1], 3))
    );
    assert_eq!(
        parse(&images, &images),
        error("labels", magic(&[0, 0, 8, 3], 1))
    );
    assert_eq!(parse(&[], &labels), error("images", magic(&[], 3)));
    let short = error(
        "labels",
        IdxError::Length {
            found: 1796,
            expected: 1797,
        },
    );
    assert_eq!(parse(&images, &labels[..labels.len() - 1]), short);
    assert_eq!(
        short.to_string(),
        "labels holds 1796 bytes after the header, which says 1797"
    );
    let mut wrong = images.clone();
    wrong[16 + 70] = 17;
    assert_eq!(
        parse(&wrong, &labels),
        error(
            "images",
            IdxError::Value {
                value: 17,
                offset: 70,
                largest: 16
            }
        )
    );
}

fn synthetic(len: usize, seed: u64) -> Synthetic {
    Synthetic {
        len,
        shape: Shape::Image { c: 3, h: 4, w: 5 },
        classes: 7,
        seed,
    }
}

#[test]
fn synthetic_samples_have_mean_zero_and_variance_one_and_depend_on_the_seed() {
    let (data, other) = (synthetic(500, 1), synthetic(500, 2));
    let (mut sum, mut squares, mut counts) = (0.0, 0.0, [0; 7]);
    let (mut sample, mut different) = (vec![0.0; 60], vec![0.0; 60]);
    for i in 0..data.len() {
        data.write(i, &mut sample);
        other.write(i, &mut different);
        assert_ne!(sample, different);
        sum += sample.iter().map(|v| f64::from(*v)).sum::<f64>();
        squares += sample.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        counts[data.label(i) as usize] += 1;
    }
    // 30 000 values: the standard error of the mean is 0.006, that of the variance about 0.005.
    let n = 500.0 * 60.0;
    assert!(
        (sum / n).abs() < 0.03 && (squares / n - 1.0).abs() < 0.03,
        "mean {}, variance {}",
        sum / n,
        squares / n
    );
    // 71 of each class on average, with a deviation of 8.
    assert!(
        counts.iter().all(|count| (35..=110).contains(count)),
        "{counts:?}"
    );
}

fn collect(loader: &mut Loader) -> Vec<Vec<i32>> {
    let mut batches = Vec::new();
    while let Some(batch) = loader.next_in_epoch() {
        assert_eq!(
            (batch.inputs.len(), batch.labels.len()),
            (batch.len * 64, batch.len)
        );
        batches.push(batch.labels.to_vec());
    }
    batches
}

#[test]
fn a_loader_keeps_or_drops_the_last_batch() {
    let data: Arc<dyn Dataset> = Arc::new(digits(Split::Test));
    let loader = |drop_last| {
        Loader::new(
            Arc::clone(&data),
            Box::new(Sequential { len: 10 }),
            4,
            drop_last,
        )
        .expect("two batches")
    };
    let labels: Vec<i32> = (0..10).map(|i| data.label(i)).collect();
    let mut keeping = loader(false);
    assert_eq!(keeping.batches(), 3);
    assert_eq!(
        collect(&mut keeping),
        [&labels[..4], &labels[4..8], &labels[8..]]
    );
    let mut dropping = loader(true);
    assert_eq!(dropping.batches(), 2);
    assert_eq!(collect(&mut dropping), [&labels[..4], &labels[4..8]]);
}

#[test]
fn a_loader_goes_on_with_the_next_epoch() {
    let data: Arc<dyn Dataset> = Arc::new(digits(Split::Train));
    let random = Random { len: 9, seed: 4 };
    let mut loader =
        Loader::new(Arc::clone(&data), Box::new(random), 4, true).expect("two batches");
    let mut expected = Vec::new();
    for epoch in 0..3 {
        let mut order = Vec::new();
        random.indices(epoch, &mut order);
        expected.extend(order[..8].iter().map(|i| data.label(*i)));
    }
    let mut image = vec![0.0; 64];
    let mut found = Vec::new();
    for k in 0..6 {
        let batch = loader.next_batch();
        assert_eq!(batch.len, 4);
        found.extend_from_slice(batch.labels);
        if k == 0 {
            let mut order = Vec::new();
            random.indices(0, &mut order);
            data.write(order[2], &mut image);
            assert_eq!(batch.part(2..3).inputs, image);
        }
    }
    assert_eq!((found, loader.epoch()), (expected, 2));
}

#[test]
fn a_loader_that_returns_gives_the_batches_that_followed_again() {
    let data: Arc<dyn Dataset> = Arc::new(digits(Split::Train));
    let random = Random { len: 10, seed: 3 };
    let mut loader = Loader::new(data, Box::new(random), 4, true).expect("two batches");
    loader.next_batch();
    let place = loader.place();
    let mut following = || -> Vec<Vec<i32>> {
        loader.return_to(place);
        let labels = (0..5).map(|_| loader.next_batch().labels.to_vec());
        labels.collect()
    };
    let first = following();
    assert_eq!(following(), first, "over the end of an epoch and back");
}

#[test]
fn batches_made_ahead_are_the_loaders_wherever_it_returns_to() {
    let data: Arc<dyn Dataset> = Arc::new(digits(Split::Train));
    let loader = || {
        let random = Random { len: 10, seed: 3 };
        Loader::new(Arc::clone(&data), Box::new(random), 4, false).expect("three batches")
    };
    let mut here = Batches::Here(loader());
    let mut ahead = Batches::Ahead(Ahead::new(loader()).expect("a thread"));
    assert_eq!(here.batches(), ahead.batches());
    let mut places = Vec::new();
    // The last batch of an epoch has 2 samples. Ways back come at once, after a batch, and one after the other.
    for back in [
        None,
        None,
        Some(1),
        None,
        None,
        Some(0),
        Some(2),
        None,
        Some(2),
    ] {
        assert_eq!(here.place(), ahead.place());
        places.push(here.place());
        if let Some(to) = back {
            here.return_to(places[to]);
            ahead.return_to(places[to]);
            continue;
        }
        for _ in 0..2 {
            let (one, other) = (here.next_batch(), ahead.next_batch());
            assert_eq!((one.len, one.labels), (other.len, other.labels));
            assert_eq!(one.inputs, other.inputs);
        }
    }
    let (one, other) = (here.next_batch(), ahead.next_batch());
    assert_eq!((one.labels, one.inputs), (other.labels, other.inputs));
}

#[test]
#[should_panic(expected = "no such sample")]
fn what_a_loader_ahead_panics_with_reaches_whoever_asks() {
    struct Broken(Digits);
    impl Dataset for Broken {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn shape(&self) -> Shape {
            self.0.shape()
        }
        fn classes(&self) -> usize {
            10
        }
        fn write(&self, _: usize, _: &mut [f32]) {
            panic!("no such sample")
        }
        fn write_labels(&self, _: usize, _: &mut [i32]) {}
    }
    let order = Random { len: 10, seed: 3 };
    let data = Arc::new(Broken(digits(Split::Train)));
    let loader = Loader::new(data, Box::new(order), 4, true).expect("two batches");
    Ahead::new(loader).expect("a thread").next_batch();
}

#[test]
fn epochs_without_a_batch_are_refused() {
    let data: Arc<dyn Dataset> = Arc::new(digits(Split::Test));
    let new = |len, batch, drop_last| {
        Loader::new(
            Arc::clone(&data),
            Box::new(Sequential { len }),
            batch,
            drop_last,
        )
        .map(|_| ())
        .expect_err("refused")
    };
    assert_eq!(new(10, 0, false), LoaderError::NoBatch);
    assert_eq!(
        new(3, 4, true),
        LoaderError::TooFew {
            samples: 3,
            batch_size: 4
        }
    );
    assert_eq!(
        new(0, 4, false),
        LoaderError::TooFew {
            samples: 0,
            batch_size: 4
        }
    );
    let message = "an epoch has 3 samples per device, fewer than the batch size 4: lower it";
    assert_eq!(new(3, 4, true).to_string(), message);
}
