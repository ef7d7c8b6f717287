//! An NVIDIA GPU as a device. Nothing is linked: libraries are found when a device is made ([`library`]).
pub mod discovery;
pub mod library;
