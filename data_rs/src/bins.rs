//! Fill bins with groups up to a number of tokens: best fit decreasing, window by window.
//!
//! The groups of a window go by descending cost (ties: the earlier position) into the fullest bin that still has room for
//! them, or into a new one. The free space of open bins is a set of small numbers, kept as a tree of 64-bit words, so that
//! "the smallest one of at least this" takes a few instructions. Windows keep bins from being sorted by length; the bins
//! of all windows are then put in an order of their own.

use crate::error::{Error, Result};
use crate::order::bin_order;

/// Tokens of a bin, at most: one table entry for each.
const MOST: usize = 1 << 24;

/// What the bins hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bins {
    /// Positions of the groups, bin after bin, ascending within each.
    pub positions: Vec<i64>,
    /// Where each bin begins among the positions, and where the last one ends.
    pub bounds: Vec<i64>,
}

/// Pack groups of these costs, which come in the order of the epoch.
///
/// # Errors
/// [`Error::Argument`] for a cost that is negative or above `capacity`, and for numbers out of range.
pub fn pack_bins(costs: &[i64], capacity: usize, window: usize, seed: u64, epoch: u64) -> Result<Bins> {
    if !(1..=MOST).contains(&capacity) {
        return Err(Error::Argument(format!("the tokens of a pack must be from 1 to {MOST}, got {capacity}")));
    }
    if window == 0 {
        return Err(Error::Argument("a window needs at least one group to pack".into()));
    }
    if u32::try_from(costs.len()).is_err() {
        return Err(Error::Argument(format!("{} groups are too many, 32 bits must count them", costs.len())));
    }
    let mut packer = Packer::new(capacity, costs.len());
    for window in costs.chunks(window) {
        packer.pack(window)?;
    }
    packer.finish(seed, epoch)
}

struct Packer {
    capacity: usize,
    bin_of: Vec<u32>,
    /// Groups of each bin.
    sizes: Vec<u32>,
    free: Spaces,
    /// For each space that is free somewhere, the last bin that has it.
    last_bin: Vec<u32>,
    /// For each bin of the window, the one before it that has the same free space.
    bin_before: Vec<u32>,
    order: Vec<u64>,
}

const NONE: u32 = u32::MAX;

#[allow(clippy::cast_possible_truncation, reason = "groups and costs have at most 32 bits")]
impl Packer {
    fn new(capacity: usize, groups: usize) -> Self {
        Self {
            capacity,
            bin_of: Vec::with_capacity(groups),
            sizes: Vec::new(),
            free: Spaces::new(capacity + 1),
            last_bin: vec![NONE; capacity + 1],
            bin_before: Vec::new(),
            order: Vec::new(),
        }
    }

    fn pack(&mut self, costs: &[i64]) -> Result<()> {
        self.order.clear();
        for (&cost, position) in costs.iter().zip(0u64..) {
            let fits = u32::try_from(cost).ok().filter(|&cost| cost as usize <= self.capacity);
            self.order.push(u64::from(!fits.ok_or_else(|| self.refuse(cost))?) << 32 | position);
        }
        self.order.sort_unstable();
        self.free.clear();
        self.bin_before.clear();
        let (first_group, first_bin) = (self.bin_of.len(), self.sizes.len());
        self.bin_of.resize(first_group + costs.len(), 0);
        for index in 0..self.order.len() {
            let key = self.order[index];
            let cost = !((key >> 32) as u32) as usize;
            let bin = self.place(cost);
            let number = first_bin + bin as usize;
            self.sizes[number] += 1;
            self.bin_of[first_group + key as u32 as usize] = number as u32;
        }
        Ok(())
    }

    fn refuse(&self, cost: i64) -> Error {
        Error::Argument(format!("a group of {cost} tokens does not fit a pack of {}", self.capacity))
    }

    /// The bin of the window that takes a group of this cost.
    fn place(&mut self, cost: usize) -> u32 {
        let (space, bin) = if let Some(space) = self.free.at_least(cost) {
            let bin = self.last_bin[space];
            self.last_bin[space] = self.bin_before[bin as usize];
            if self.last_bin[space] == NONE {
                self.free.remove(space);
            }
            (space, bin)
        } else {
            self.sizes.push(0);
            self.bin_before.push(NONE);
            (self.capacity, self.bin_before.len() as u32 - 1)
        };
        let left = space - cost;
        let before = if self.free.insert(left) { NONE } else { self.last_bin[left] };
        self.bin_before[bin as usize] = before;
        self.last_bin[left] = bin;
        bin
    }

    /// The bins in their order.
    #[allow(clippy::cast_possible_wrap, reason = "indexes into memory fit")]
    fn finish(mut self, seed: u64, epoch: u64) -> Result<Bins> {
        let mut bounds = vec![0];
        let mut end = 0;
        for bin in bin_order(self.sizes.len(), seed, epoch)? {
            let groups = std::mem::replace(&mut self.sizes[bin as usize], end);
            end += groups;
            bounds.push(i64::from(end));
        }
        let mut positions = vec![0; self.bin_of.len()];
        for (position, &bin) in self.bin_of.iter().enumerate() {
            let place = &mut self.sizes[bin as usize];
            positions[*place as usize] = position as i64;
            *place += 1;
        }
        Ok(Bins { positions, bounds })
    }
}

/// A set of numbers below a limit. A bit of each level says whether the 64 below it have any.
struct Spaces(Vec<Vec<u64>>);

impl Spaces {
    fn new(limit: usize) -> Self {
        let mut levels = vec![vec![0; limit.div_ceil(64)]];
        while let Some(words) = levels.last().map(Vec::len).filter(|&words| words > 1) {
            levels.push(vec![0; words.div_ceil(64)]);
        }
        Self(levels)
    }

    fn clear(&mut self) {
        self.0.iter_mut().for_each(|level| level.fill(0));
    }

    /// Whether it is new.
    fn insert(&mut self, mut number: usize) -> bool {
        let new = self.0[0][number / 64] & 1 << (number % 64) == 0;
        for level in &mut self.0 {
            level[number / 64] |= 1 << (number % 64);
            number /= 64;
        }
        new
    }

    fn remove(&mut self, mut number: usize) {
        for level in &mut self.0 {
            level[number / 64] &= !(1 << (number % 64));
            if level[number / 64] != 0 {
                break;
            }
            number /= 64;
        }
    }

    /// The smallest number in the set that is not below `number`.
    fn at_least(&self, mut number: usize) -> Option<usize> {
        for (height, level) in self.0.iter().enumerate() {
            let found = level.get(number / 64)? & u64::MAX << (number % 64);
            if found != 0 {
                let top = number / 64 * 64 + found.trailing_zeros() as usize;
                let down = self.0[..height].iter().rev();
                return Some(down.fold(top, |at, level| at * 64 + level[at].trailing_zeros() as usize));
            }
            number = number / 64 + 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn bins(found: &Bins) -> Vec<&[i64]> {
        let at = |bound: i64| usize::try_from(bound).unwrap();
        found.bounds.windows(2).map(|ends| &found.positions[at(ends[0])..at(ends[1])]).collect()
    }

    /// Best fit decreasing as it is written in books: how full each bin is.
    fn slow(costs: &[i64], capacity: i64) -> Vec<i64> {
        let mut sorted = costs.to_vec();
        sorted.sort_unstable_by(|left, right| right.cmp(left));
        let mut loads: Vec<i64> = Vec::new();
        for cost in sorted {
            match loads.iter_mut().filter(|load| **load + cost <= capacity).max() {
                Some(load) => *load += cost,
                None => loads.push(cost),
            }
        }
        loads.sort_unstable();
        loads
    }

    proptest! {
        #[test]
        fn windows_are_packed_as_in_books(
            costs in prop::collection::vec(0i64..=300, 0..200), capacity in 300usize..5000, window in 1usize..120, seed: u64,
        ) {
            let found = pack_bins(&costs, capacity, window, seed, 3).unwrap();
            let load = |bin: &[i64]| -> i64 { bin.iter().map(|&at| costs[usize::try_from(at).unwrap()]).sum() };
            for (number, part) in costs.chunks(window).enumerate() {
                let own = |at: i64| usize::try_from(at).unwrap() / window == number;
                let mine = bins(&found).into_iter().filter(|bin| own(bin[0]));
                let mut loads: Vec<i64> = mine.inspect(|bin| assert!(bin.iter().all(|&at| own(at)))).map(load).collect();
                loads.sort_unstable();
                prop_assert_eq!(loads, slow(part, i64::try_from(capacity).unwrap()));
            }
            prop_assert!(bins(&found).iter().all(|bin| bin.is_sorted() && !bin.is_empty()));
            let mut all = found.positions.clone();
            all.sort_unstable();
            prop_assert!(all.into_iter().eq((0i64..).take(costs.len())));
        }

        #[test]
        fn a_set_of_spaces_is_a_set(limit in 1usize..9000, steps in prop::collection::vec((0usize..9000, any::<bool>()), 0..300)) {
            let (mut fast, mut slow) = (Spaces::new(limit), BTreeSet::new());
            for (number, put) in steps {
                let number = number % limit;
                prop_assert_eq!(fast.at_least(number), slow.range(number..).next().copied());
                if put {
                    prop_assert_eq!(fast.insert(number), slow.insert(number));
                } else if slow.remove(&number) {
                    fast.remove(number);
                }
            }
            prop_assert_eq!(fast.at_least(limit + 64), None);
        }

        #[test]
        fn no_arguments_panic(costs in prop::collection::vec(any::<i64>(), 0..9), capacity: usize, window: usize) {
            let _ = pack_bins(&costs, capacity, window, 0, 0);
            let _ = pack_bins(&costs, 100, window, 0, 0);
        }
    }

    #[test]
    fn the_order_of_bins_follows_seed_and_epoch() {
        let costs: Vec<i64> = (0..500).map(|number| 1 + number * 7 % 90).collect();
        let of = |seed, epoch| pack_bins(&costs, 100, 100, seed, epoch).unwrap();
        assert_eq!(of(1, 2), of(1, 2));
        assert_ne!(of(1, 2), of(1, 3));
        assert_ne!(of(1, 2), of(2, 2));
        let sorted = |found: &Bins| bins(found).into_iter().map(<[i64]>::to_vec).collect::<BTreeSet<_>>();
        assert_eq!(sorted(&of(1, 2)), sorted(&of(2, 9)));
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let error = pack_bins(&[5, 101], 100, 10, 0, 0).unwrap_err();
        assert_eq!(error.to_string(), "a group of 101 tokens does not fit a pack of 100");
        for (costs, capacity, window) in [(&[-1][..], 10, 1), (&[1], 0, 1), (&[1], MOST + 1, 1), (&[1], 10, 0)] {
            assert!(pack_bins(costs, capacity, window, 0, 0).is_err());
        }
        assert_eq!(pack_bins(&[], 10, 1, 0, 0).unwrap(), Bins { positions: vec![], bounds: vec![0] });
    }
}
