//! A set of numbers kept as ranges: small as long as neighbours come together.

use std::collections::BTreeMap;

/// Start to end, both included; ranges never touch each other.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many numbers.
    pub(super) fn count(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start + 1).sum()
    }

    pub(super) fn last(&self) -> Option<u64> {
        self.0.last_key_value().map(|(_, end)| *end)
    }

    /// Start and end of each range, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|(start, end)| (*start, *end))
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        self.0.range(..=number).next_back().is_some_and(|(_, end)| *end >= number)
    }

    pub(super) fn insert(&mut self, number: u64) {
        self.insert_range(number, number);
    }

    pub(super) fn insert_range(&mut self, mut start: u64, mut end: u64) {
        while let Some((&left, &right)) = self.0.range(..=end.saturating_add(1)).next_back() {
            if right.saturating_add(1) < start {
                break;
            }
            self.0.remove(&left);
            start = start.min(left);
            end = end.max(right);
        }
        self.0.insert(start, end);
    }

    pub(super) fn remove_range(&mut self, start: u64, end: u64) {
        while let Some((&left, &right)) = self.0.range(..=end).next_back() {
            if right < start {
                break;
            }
            self.0.remove(&left);
            if right > end {
                self.0.insert(end + 1, right);
            }
            if left < start {
                self.0.insert(left, start - 1);
            }
        }
    }

    /// The numbers that are in both.
    pub(super) fn intersection(&self, other: &Self) -> Self {
        let mut both = Self::default();
        for (start, end) in self.iter() {
            let first = other.0.range(..=start).next_back().map_or(start, |(left, _)| *left);
            for (left, right) in other.0.range(first..=end) {
                if *right >= start {
                    both.insert_range(start.max(*left), end.min(*right));
                }
            }
        }
        both
    }
}

impl Extend<(u64, u64)> for Ranges {
    fn extend<T: IntoIterator<Item = (u64, u64)>>(&mut self, ranges: T) {
        for (start, end) in ranges {
            self.insert_range(start, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ranges() -> impl Strategy<Value = (Ranges, BTreeSet<u64>)> {
        prop::collection::vec((any::<bool>(), 0..60_u64, 0..8_u64), 0..20).prop_map(|steps| {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for (add, start, more) in steps {
                if add {
                    ranges.insert_range(start, start + more);
                    set.extend(start..=start + more);
                } else {
                    ranges.remove_range(start, start + more);
                    set.retain(|number| !(start..=start + more).contains(number));
                }
            }
            (ranges, set)
        })
    }

    proptest! {
        #[test]
        fn ranges_are_a_set_of_numbers((a, a_set) in ranges(), (b, b_set) in ranges()) {
            prop_assert_eq!(a.count(), a_set.len() as u64);
            prop_assert_eq!(a.last(), a_set.last().copied());
            for number in 0..70 {
                prop_assert_eq!(a.contains(number), a_set.contains(&number));
                prop_assert_eq!(
                    a.intersection(&b).contains(number),
                    a_set.contains(&number) && b_set.contains(&number)
                );
            }
            for ((_, end), (start, _)) in a.iter().zip(a.iter().skip(1)) {
                prop_assert!(end + 1 < start, "neighbours are one range");
            }
        }
    }
}
