//! The order of an epoch and the draws of label noise: pure functions of their seeds, the same on every machine.
//!
//! All numbers are 64-bit and wrap around. `GAMMA` is 0x9E3779B97F4A7C15 and `mix` is splitmix64's finalizer. A stream
//! has the key `mix(mix(seed + GAMMA) + mix(domain + 2 * GAMMA) + index * GAMMA)`; its draw number k, from 0, is
//! `mix(key + (k + 1) * GAMMA)`. Orders have domain 0 and the epoch as index, label noise has domain 1 and the row, orders of
//! bins have domain 2 and the epoch.

use crate::error::{Error, Result};

const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;
const ORDER: u64 = 0;
const FLIP: u64 = 1;
const BINS: u64 = 2;

/// splitmix64's finalizer.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

fn key(seed: u64, domain: u64, index: u64) -> u64 {
    let domain = mix(domain.wrapping_add(GAMMA.wrapping_mul(2)));
    mix(mix(seed.wrapping_add(GAMMA)).wrapping_add(domain).wrapping_add(index.wrapping_mul(GAMMA)))
}

fn draw(key: u64, number: u64) -> u64 {
    mix(key.wrapping_add(number.wrapping_add(1).wrapping_mul(GAMMA)))
}

/// Whether label noise of this fraction swaps the sides of a row: its draw's upper 53 bits as a fraction are below it.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "53 bits fit")]
pub fn flips(fraction: f64, seed: u64, row: u64) -> bool {
    ((draw(key(seed, FLIP, row), 0) >> 11) as f64) / ((1u64 << 53) as f64) < fraction
}

/// The order of the groups `0..groups` in an epoch; see `permutation`.
///
/// # Errors
/// [`Error::Argument`] if they are more than 32 bits count, or there is no memory for them.
pub fn epoch_order(groups: usize, seed: u64, epoch: u64) -> Result<Vec<i64>> {
    let order = permutation(groups, key(seed, ORDER, epoch))?;
    Ok(order.into_iter().map(i64::from).collect())
}

/// The order of the bins `0..bins` in an epoch, drawn apart from that of the groups.
///
/// # Errors
/// As [`epoch_order`].
pub fn bin_order(bins: usize, seed: u64, epoch: u64) -> Result<Vec<u32>> {
    permutation(bins, key(seed, BINS, epoch))
}

/// Fisher-Yates from the end: place i (draw number `count - 1 - i`) swapped with place `draw * (i + 1) >> 64`.
fn permutation(count: usize, key: u64) -> Result<Vec<u32>> {
    let refuse = || Error::Argument(format!("an order of {count} groups is not possible, 32 bits must count them"));
    let end = u32::try_from(count).map_err(|_| refuse())?;
    let mut order: Vec<u32> = Vec::new();
    order.try_reserve_exact(count).map_err(|_| Error::Argument(format!("no memory for an order of {count} groups")))?;
    order.extend(0..end);
    for (number, place) in (1..count).rev().enumerate() {
        let wide = u128::from(draw(key, number as u64)) * (place as u128 + 1);
        #[allow(clippy::cast_possible_truncation, reason = "it is at most the place")]
        order.swap(place, (wide >> 64) as usize);
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn orders_are_permutations(groups in 0usize..300, seed: u64, epoch: u64) {
            let mut order = epoch_order(groups, seed, epoch).unwrap();
            prop_assert_eq!(&order, &epoch_order(groups, seed, epoch).unwrap());
            order.sort_unstable();
            prop_assert!(order.iter().copied().eq((0i64..).take(groups)));
        }
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let order = epoch_order(100, 1, 0).unwrap();
        assert_ne!(order, epoch_order(100, 1, 1).unwrap());
        assert_ne!(order, epoch_order(100, 0, 1).unwrap());
        assert!(bin_order(100, 1, 0).unwrap().into_iter().map(i64::from).ne(order));
    }

    #[test]
    fn too_many_are_refused() {
        assert!(epoch_order(usize::MAX, 0, 0).is_err() && epoch_order(1 << 32, 0, 0).is_err());
    }

    #[test]
    fn flips_come_at_their_rate() {
        let rate = (0..10_000).filter(|&row| flips(0.25, 7, row)).count();
        assert!((2_300..2_700).contains(&rate));
        assert!(!(0..100).any(|row| flips(0.0, 7, row)) && (0..100).all(|row| flips(1.0, 7, row)));
    }
}
