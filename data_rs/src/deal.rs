//! Deal one step's groups to ranks and packs.
//!
//! Longest processing time first: groups by descending cost (ties: the earlier position), each to the rank with the
//! smallest load (ties: fewest groups, then the lowest rank); each rank's share goes to its packs in the same way.

use std::cmp::Reverse;

use crate::error::{Error, Result};

const MOST: usize = 1 << 20;

/// One pack's groups.
#[derive(Clone, Debug, PartialEq)]
pub struct Deal {
    /// Positions within the step, ascending.
    pub positions: Vec<i64>,
    /// 1 for a group that counts, 0 for one that is repeated because the share is empty.
    pub counts: Vec<f32>,
}

/// Deal groups of these costs: for each rank its `accumulate` packs.
///
/// # Errors
/// [`Error::Argument`] for no groups, a negative cost, or numbers of ranks or packs out of range.
pub fn deal_step(costs: &[i64], ranks: usize, accumulate: usize) -> Result<Vec<Vec<Deal>>> {
    let Some((cheapest, _)) = costs.iter().enumerate().min_by_key(|&(position, cost)| (cost, position)) else {
        return Err(Error::Argument("a step needs at least one group to deal".into()));
    };
    if costs.iter().any(|&cost| cost < 0) {
        return Err(Error::Argument("costs must not be negative".into()));
    }
    if !(1..=MOST).contains(&ranks) || !(1..=MOST).contains(&accumulate) || ranks * accumulate > MOST {
        return Err(Error::Argument(format!("{ranks} ranks with {accumulate} packs each cannot be dealt to")));
    }
    let mut order: Vec<usize> = (0..costs.len()).collect();
    order.sort_by_key(|&position| Reverse(costs.get(position).copied()));
    let shares = greedy(&order, costs, ranks).into_iter();
    Ok(shares
        .map(|share| greedy(&share, costs, accumulate).into_iter().map(|pack| fill(pack, cheapest)).collect())
        .collect())
}

fn greedy(order: &[usize], costs: &[i64], bins: usize) -> Vec<Vec<usize>> {
    let mut filled = vec![(0i128, Vec::new()); bins];
    for &position in order {
        if let Some((load, share)) = filled.iter_mut().min_by_key(|(load, share)| (*load, share.len())) {
            *load += costs.get(position).copied().map_or(0, i128::from);
            share.push(position);
        }
    }
    filled.into_iter().map(|(_, share)| share).collect()
}

#[allow(clippy::cast_possible_wrap, reason = "a position fits, it indexes a slice")]
fn fill(mut pack: Vec<usize>, cheapest: usize) -> Deal {
    if pack.is_empty() {
        return Deal { positions: vec![cheapest as i64], counts: vec![0.0] };
    }
    pack.sort_unstable();
    let counts = vec![1.0; pack.len()];
    Deal { positions: pack.into_iter().map(|position| position as i64).collect(), counts }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_group_counts_once(costs in prop::collection::vec(0i64..999, 1..60), ranks in 1usize..6, packs in 1usize..6) {
            let deals = deal_step(&costs, ranks, packs).unwrap();
            prop_assert!(deals.len() == ranks && deals.iter().all(|share| share.len() == packs));
            let flat = deals.iter().flatten().inspect(|deal| assert!(!deal.positions.is_empty()));
            let real = flat.filter(|deal| deal.counts[0] > 0.0).flat_map(|deal| deal.positions.clone());
            let mut real: Vec<i64> = real.collect();
            real.sort_unstable();
            prop_assert!(real.into_iter().eq((0i64..).take(costs.len())));
        }
    }

    #[test]
    fn an_empty_pack_repeats_the_cheapest() {
        let deals = deal_step(&[5, 3, 3], 2, 2).unwrap();
        assert_eq!(deals[0][1], Deal { positions: vec![1], counts: vec![0.0] });
        assert!(deal_step(&[], 1, 1).is_err() && deal_step(&[1], 0, 1).is_err() && deal_step(&[-1], 1, 1).is_err());
    }
}
