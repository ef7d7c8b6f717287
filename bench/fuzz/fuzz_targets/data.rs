//! Any bytes as a data file: samples or an error, never a panic and never more memory than the bytes can hold.
//!
//! Contract: the first byte chooses the reader.
#![no_main]
use libfuzzer_sys::fuzz_target;
use syncmark_engine::data::{Dataset, Digits, Split, cifar10, fashion_mnist};

/// Header and pixels of the digits' images.
const IMAGES_BYTES: usize = 16 + Digits::LEN * Digits::PIXELS;

fuzz_target!(|bytes: &[u8]| {
    let Some((reader, file)) = bytes.split_first() else {
        return;
    };
    match reader % 4 {
        0 => {
            if let Ok(idx) = fashion_mnist::images_of(file) {
                assert_eq!(idx.data.len(), idx.dimensions[0] as usize * 784);
            }
        }
        1 => {
            if let Ok(idx) = fashion_mnist::labels_of(file) {
                assert!(idx.data.iter().all(|label| *label < 10));
            }
        }
        2 => {
            let (mut pixels, mut labels) = (Vec::new(), Vec::new());
            match cifar10::records(file, &mut pixels, &mut labels) {
                Ok(()) => assert_eq!(pixels.len(), labels.len() * 3072),
                Err(problem) => {
                    assert!(pixels.is_empty() && labels.is_empty() && !problem.is_empty());
                }
            }
        }
        _ => {
            let (images, labels) = file.split_at(file.len().min(IMAGES_BYTES));
            if let Ok(digits) = Digits::parse(images, labels, Split::All) {
                assert_eq!(digits.len(), Digits::LEN);
            }
        }
    }
});
