//! A bit for each of the 256 interrupt vectors: the shape of IRR, ISR and TMR.

/// A set of vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Vectors([u32; 8]);

impl Vectors {
    pub(super) fn insert(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] |= 1 << (vector & 31);
    }

    pub(super) fn remove(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] &= !(1 << (vector & 31));
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] >> (vector & 31) & 1 != 0
    }

    /// The vector of highest priority.
    pub(super) fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|word| *word != 0)?;
        // Below 8 and below 32.
        Some((word as u32 * 32 + 31 - self.0[word].leading_zeros()) as u8)
    }

    /// The registers that show it.
    pub(super) fn words(&self) -> [u32; 8] {
        self.0
    }

    pub(super) fn from_words(words: [u32; 8]) -> Self {
        Self(words)
    }
}

#[cfg(test)]
mod tests {
    use super::Vectors;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_a_set_with_a_greatest_member(
            inserted in prop::collection::vec(any::<u8>(), 0..40),
            removed in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut vectors = Vectors::default();
            let mut model = std::collections::BTreeSet::new();
            for vector in &inserted {
                vectors.insert(*vector);
                model.insert(*vector);
            }
            for vector in &removed {
                vectors.remove(*vector);
                model.remove(vector);
            }
            prop_assert_eq!(vectors.highest(), model.last().copied());
            for vector in 0..=255 {
                prop_assert_eq!(vectors.contains(vector), model.contains(&vector));
            }
            prop_assert_eq!(Vectors::from_words(vectors.words()), vectors);
        }
    }
}
