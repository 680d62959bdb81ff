//! The prompt that the responses of a group share.

/// Tokens of the longest common beginning, capped one short of the shortest response, so that none becomes empty.
#[must_use]
pub fn shared_prefix(responses: &[&[i32]]) -> usize {
    let Some((first, rest)) = responses.split_first() else { return 0 };
    let cap = responses.iter().map(|tokens| tokens.len()).min().unwrap_or(0).saturating_sub(1);
    let common = |other: &&[i32]| first.iter().zip(other.iter()).take_while(|(left, right)| left == right).count();
    rest.iter().map(common).min().unwrap_or(first.len()).min(cap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_one_short() {
        assert_eq!(shared_prefix(&[&[1, 2, 3], &[1, 2, 4]]), 2);
        assert_eq!(shared_prefix(&[&[1, 2], &[1, 2, 4]]), 1);
        assert_eq!(shared_prefix(&[&[1], &[1, 2, 4]]), 0);
        assert_eq!(shared_prefix(&[&[1, 2, 3], &[1, 2, 3], &[1, 9, 3]]), 1);
        assert_eq!(shared_prefix(&[]), 0);
    }
}
