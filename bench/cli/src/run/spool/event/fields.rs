//! Numbers in the 64 bytes of an event, little-endian and in order.
use super::EVENT_BYTES;

/// Writes and reads the fields of an event in order.
pub(super) struct Fields<T> {
    pub(super) bytes: T,
    pub(super) at: usize,
}

impl Fields<&mut [u8; EVENT_BYTES]> {
    pub(super) fn put<const N: usize>(&mut self, value: [u8; N]) -> &mut Self {
        self.bytes[self.at..self.at + N].copy_from_slice(&value);
        self.at += N;
        self
    }
    pub(super) fn words(&mut self, values: &[u64]) -> &mut Self {
        for value in values {
            self.put(value.to_le_bytes());
        }
        self
    }
}

impl Fields<&[u8; EVENT_BYTES]> {
    pub(super) fn take<const N: usize>(&mut self) -> [u8; N] {
        self.at += N;
        self.bytes[self.at - N..self.at]
            .try_into()
            .expect("within the event")
    }
    pub(super) fn u8(&mut self) -> u8 {
        self.take::<1>()[0]
    }
    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }
    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }
    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}
