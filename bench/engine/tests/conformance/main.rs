//! One suite for every backend: each kernel against a plain f64 reference, and the order of streams and events.
//!
//! A backend passes when its results are within [`device::TOLERANCE`] of the references, for odd sizes and both ways of
//! writing. A new backend is added in [`device::on_every_backend`].
mod compression;
mod device;
mod elementwise;
mod loss;
mod norms;
mod optimizers;
mod pooling;
mod products;
mod rms;
mod streams;
