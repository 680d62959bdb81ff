//! Deal steps' groups to ranks and packs.
//!
//! Longest processing time first: groups by descending cost (ties: the earlier position), each to the rank with the
//! smallest load (ties: fewest groups, then the lowest rank), and there to its packs in the same way.

use crate::error::{Error, Result};

/// Ranks times packs of one step.
const MOST: usize = 1 << 20;
/// Ranks times packs of all steps dealt at once: half a gigabyte of bounds.
const MOST_AT_ONCE: usize = 1 << 26;

/// What the packs of some steps hold: pack p of rank r in step s is number `(s * ranks + r) * accumulate + p`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Deals {
    /// Positions among the groups that were dealt, pack after pack, ascending within each.
    pub positions: Vec<i64>,
    /// For each of them 1 if it counts, 0 if it is repeated because the share is empty.
    pub counts: Vec<f32>,
    /// Where each pack begins among the positions, and where the last one ends.
    pub bounds: Vec<i64>,
}

impl Deals {
    /// Positions and counts of each pack.
    pub fn packs(&self) -> impl Iterator<Item = (&[i64], &[f32])> {
        let at = |bound: i64| usize::try_from(bound).unwrap_or(usize::MAX);
        self.bounds.windows(2).filter_map(move |ends| {
            let range = at(ends[0])..at(ends[1]);
            Some((self.positions.get(range.clone())?, self.counts.get(range)?))
        })
    }
}

/// How groups are cut into steps and shared out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Groups of a step; the last one may hold fewer.
    pub groups_per_step: usize,
    /// Ranks.
    pub ranks: usize,
    /// Packs of each rank in a step.
    pub accumulate: usize,
}

/// Deal groups of these costs, step after step.
///
/// # Errors
/// [`Error::Argument`] for no groups, a cost that is negative or above 32 bits, or steps, ranks or packs out of range.
pub fn deal_steps(costs: &[i64], plan: Plan) -> Result<Deals> {
    let costs = checked(costs)?;
    let Plan { groups_per_step, ranks, accumulate } = plan;
    if groups_per_step == 0 {
        return Err(Error::Argument("a step needs at least one group, groups_per_step is 0".into()));
    }
    if !(1..=MOST).contains(&ranks) || !(1..=MOST).contains(&accumulate) || ranks * accumulate > MOST {
        return Err(Error::Argument(format!("{ranks} ranks with {accumulate} packs each cannot be dealt to")));
    }
    let (steps, packs) = (costs.len().div_ceil(groups_per_step), ranks * accumulate);
    if steps > MOST_AT_ONCE / packs {
        return Err(Error::Argument(format!("{steps} steps of {packs} packs are too many at once; deal fewer steps")));
    }
    let mut deals = Deals { bounds: Vec::with_capacity(steps * packs + 1), ..Deals::default() };
    deals.positions.reserve(costs.len());
    deals.counts.reserve(costs.len());
    deals.bounds.push(0);
    let mut table = Table::new(ranks, accumulate);
    for (step, costs) in costs.chunks(groups_per_step).enumerate() {
        table.deal(costs);
        table.write(step * groups_per_step, &mut deals);
    }
    Ok(deals)
}

fn checked(costs: &[i64]) -> Result<Vec<u32>> {
    if costs.is_empty() {
        return Err(Error::Argument("a step needs at least one group to deal".into()));
    }
    if u32::try_from(costs.len()).is_err() {
        return Err(Error::Argument(format!("{} groups are too many at once; deal fewer steps", costs.len())));
    }
    let refuse = |cost| Error::Argument(format!("a cost must be from 0 to {}, got {cost}", u32::MAX));
    costs.iter().map(|&cost| u32::try_from(cost).map_err(|_| refuse(cost))).collect()
}

/// What the steps are dealt with, one after the other.
struct Table {
    accumulate: usize,
    ranks: Vec<u128>,
    packs: Vec<u128>,
    /// Groups by descending cost: the cost turned around, then the position.
    order: Vec<u64>,
    /// The pack of each group.
    pack_of: Vec<u32>,
    /// Groups of each pack; then, where the next one of them is written.
    places: Vec<usize>,
}

#[allow(clippy::cast_possible_truncation, reason = "the lower 32 bits are meant, and positions have no more")]
impl Table {
    fn new(ranks: usize, accumulate: usize) -> Self {
        let (order, pack_of) = (Vec::new(), Vec::new());
        let packs = ranks * accumulate;
        Self { accumulate, ranks: vec![0; ranks], packs: vec![0; packs], order, pack_of, places: vec![0; packs] }
    }

    fn deal(&mut self, costs: &[u32]) {
        self.order.clear();
        self.order.extend(costs.iter().zip(0u64..).map(|(&cost, position)| u64::from(!cost) << 32 | position));
        self.order.sort_unstable();
        self.pack_of.resize(costs.len(), 0);
        self.places.fill(0);
        clear(&mut self.ranks);
        self.packs.chunks_exact_mut(self.accumulate).for_each(clear);
        for &key in &self.order {
            let cost = !((key >> 32) as u32);
            let rank = add(&mut self.ranks, cost);
            let first = rank * self.accumulate;
            let pack = first + add(&mut self.packs[first..first + self.accumulate], cost);
            self.pack_of[key as u32 as usize] = pack as u32;
            self.places[pack] += 1;
        }
    }

    #[allow(clippy::cast_possible_wrap, reason = "indexes into memory fit")]
    fn write(&mut self, first: usize, deals: &mut Deals) {
        let mut end = deals.positions.len();
        let cheapest = self.cheapest(first);
        for place in &mut self.places {
            let groups = std::mem::replace(place, end);
            end += groups.max(1);
            deals.bounds.push(end as i64);
        }
        deals.positions.resize(end, cheapest);
        deals.counts.resize(end, 0.0);
        for (&pack, position) in self.pack_of.iter().zip(first..) {
            let place = &mut self.places[pack as usize];
            deals.positions[*place] = position as i64;
            deals.counts[*place] = 1.0;
            *place += 1;
        }
    }

    /// The group that fills empty shares: the first of the cheapest ones.
    #[allow(clippy::cast_possible_wrap, reason = "indexes into memory fit")]
    fn cheapest(&self, first: usize) -> i64 {
        let cost = self.order.last().map_or(0, |key| key >> 32);
        let place = self.order.partition_point(|key| key >> 32 < cost);
        self.order.get(place).map_or(0, |key| (first + *key as u32 as usize) as i64)
    }
}

/// An entry of a heap of loads: the load, then how many groups it is of, then whose it is.
fn clear(heap: &mut [u128]) {
    for (entry, index) in heap.iter_mut().zip(0..) {
        *entry = index;
    }
}

/// Add a cost to the smallest load, and say whose that is.
#[allow(clippy::cast_possible_truncation, reason = "the lower 32 bits are meant")]
fn add(heap: &mut [u128], cost: u32) -> usize {
    let entry = heap[0];
    let changed = entry + (u128::from(cost) << 64) + (1 << 32);
    let mut place = 0;
    loop {
        let left = 2 * place + 1;
        if left >= heap.len() {
            break;
        }
        let right = if left + 1 < heap.len() { left + 1 } else { left };
        let child = if heap[right] < heap[left] { right } else { left };
        if changed <= heap[child] {
            break;
        }
        heap[place] = heap[child];
        place = child;
    }
    heap[place] = changed;
    entry as u32 as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packs(deals: &Deals) -> Vec<(Vec<i64>, Vec<f32>)> {
        deals.packs().map(|(positions, counts)| (positions.to_vec(), counts.to_vec())).collect()
    }

    fn plan(groups_per_step: usize, ranks: usize, accumulate: usize) -> Plan {
        Plan { groups_per_step, ranks, accumulate }
    }

    proptest! {
        #[test]
        fn each_group_counts_once_and_in_its_own_step(
            costs in prop::collection::vec(0i64..999, 1..90), per_step in 1usize..40, ranks in 1usize..6, accumulate in 1usize..6,
        ) {
            let deals = deal_steps(&costs, plan(per_step, ranks, accumulate)).unwrap();
            let packs = packs(&deals);
            prop_assert_eq!(packs.len(), costs.len().div_ceil(per_step) * ranks * accumulate);
            let mut seen: Vec<i64> = Vec::new();
            for (number, (positions, counts)) in packs.iter().enumerate() {
                let step = number / (ranks * accumulate);
                prop_assert!(!positions.is_empty() && positions.is_sorted());
                prop_assert!(positions.iter().all(|&position| usize::try_from(position).unwrap() / per_step == step));
                if counts[0] > 0.0 {
                    seen.extend(positions);
                }
                let expected = if counts[0] > 0.0 { vec![1.0; positions.len()] } else { vec![0.0] };
                prop_assert_eq!(counts, &expected);
            }
            seen.sort_unstable();
            prop_assert!(seen.into_iter().eq((0i64..).take(costs.len())));
        }

        #[test]
        fn steps_dealt_together_are_dealt_as_each_alone(
            costs in prop::collection::vec(0i64..20, 1..90), per_step in 1usize..40, ranks in 1usize..6, accumulate in 1usize..6,
        ) {
            let together = packs(&deal_steps(&costs, plan(per_step, ranks, accumulate)).unwrap());
            let mut alone = Vec::new();
            for (step, costs) in costs.chunks(per_step).enumerate() {
                let first = i64::try_from(step * per_step).unwrap();
                let found = packs(&deal_steps(costs, plan(costs.len(), ranks, accumulate)).unwrap());
                alone.extend(found.into_iter().map(|(at, counts)| (at.into_iter().map(|at| first + at).collect(), counts)));
            }
            prop_assert_eq!(together, alone);
        }

        /// No rank is above another by more than the dearest group, and so not above the mean by more.
        #[test]
        fn ranks_differ_by_one_group_at_most(
            costs in prop::collection::vec(0i64..1_000_000, 1..200), ranks in 1usize..9, accumulate in 1usize..5,
        ) {
            let deals = deal_steps(&costs, plan(costs.len(), ranks, accumulate)).unwrap();
            let load = |(positions, counts): &(Vec<i64>, Vec<f32>)| -> i64 {
                if counts[0] > 0.0 { positions.iter().map(|&at| costs[usize::try_from(at).unwrap()]).sum() } else { 0 }
            };
            let loads: Vec<i64> = packs(&deals).iter().map(load).collect();
            let ranks: Vec<i64> = loads.chunks(accumulate).map(|share| share.iter().sum()).collect();
            let dearest = costs.iter().max().unwrap();
            prop_assert!(ranks.iter().max().unwrap() - ranks.iter().min().unwrap() <= *dearest);
            for share in loads.chunks(accumulate) {
                prop_assert!(share.iter().max().unwrap() - share.iter().min().unwrap() <= *dearest);
            }
        }

        /// Whatever the ranks and packs, a step holds the same groups.
        #[test]
        fn steps_do_not_depend_on_ranks(
            costs in prop::collection::vec(0i64..99, 1..90), per_step in 1usize..40, ranks in 1usize..9, accumulate in 1usize..5,
        ) {
            let one = packs(&deal_steps(&costs, plan(per_step, 1, 1)).unwrap());
            let many = packs(&deal_steps(&costs, plan(per_step, ranks, accumulate)).unwrap());
            for ((expected, _), found) in one.iter().zip(many.chunks(ranks * accumulate)) {
                let real = found.iter().filter(|(_, counts)| counts[0] > 0.0).flat_map(|(positions, _)| positions);
                let mut real: Vec<i64> = real.copied().collect();
                real.sort_unstable();
                prop_assert_eq!(&real, expected);
            }
        }

        #[test]
        fn no_arguments_panic(
            costs in prop::collection::vec(any::<i64>(), 0..9), per_step: usize, ranks: usize, accumulate: usize,
        ) {
            let _ = deal_steps(&costs, plan(per_step, ranks, accumulate));
            let _ = deal_steps(&[1, 2], plan(per_step, 1, 1));
            let _ = deal_steps(&[1], plan(1, ranks, 1));
            let _ = deal_steps(&[1], plan(1, 1, accumulate));
        }
    }

    #[test]
    fn an_empty_pack_repeats_the_cheapest() {
        let deals = deal_steps(&[5, 3, 3], plan(3, 2, 2)).unwrap();
        assert_eq!(packs(&deals)[1], (vec![1], vec![0.0]));
        for (costs, plan) in [
            (&[][..], plan(1, 1, 1)),
            (&[1], plan(0, 1, 1)),
            (&[1], plan(1, 0, 1)),
            (&[1], plan(1, 1, 0)),
            (&[1], plan(1, usize::MAX, 1)),
            (&[-1], plan(1, 1, 1)),
            (&[i64::MAX], plan(1, 1, 1)),
            (&[1; 1000], plan(1, MOST, 1)),
        ] {
            assert!(deal_steps(costs, plan).is_err(), "{plan:?}");
        }
    }
}
