//! What the observer saw of a control page.

/// The bytes of a control page.
#[derive(Clone)]
pub(super) struct Page {
    pub(super) bytes: Vec<u8>,
}

impl Page {
    /// From the observer's answer.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let digits = |at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
        let bytes: Vec<u8> = (0..text.len()).step_by(2).map(digits).collect::<Option<_>>()?;
        (bytes.len() == 4096).then_some(Self { bytes })
    }

    /// The references that rings of these orders need.
    pub(super) fn references_mut(&mut self) -> &mut [[u8; 4]] {
        let count: usize = [16, 18].map(|at| (1 << self.bytes[at]) >> 12).iter().sum();
        let (words, _) = self.bytes[24..].as_chunks_mut();
        &mut words[..count]
    }

    /// The references of the left ring, and of the right one, from the first of either on; and the page without them.
    pub(super) fn divided(&self) -> ([Vec<u32>; 2], Vec<u8>) {
        let mut rest = self.clone();
        let references: Vec<u32> =
            rest.references_mut().iter_mut().map(|gref| u32::from_ne_bytes(std::mem::take(gref))).collect();
        let (left, right) = references.split_at((1 << self.bytes[16]) >> 12);
        let from_first = |references: &[u32]| references.iter().map(|gref| gref - references[0]).collect();
        ([from_first(left), from_first(right)], rest.bytes)
    }
}
