"""epoch_order, deal_step and the draws of label noise once more: slow, in plain Python, and obviously right."""

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


def mix(bits: int) -> int:
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & MASK
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & MASK
    return bits ^ bits >> 31


def draw(seed: int, domain: int, index: int, number: int) -> int:
    key = mix(mix(seed + GAMMA & MASK) + mix(domain + 2 * GAMMA & MASK) + index * GAMMA & MASK)
    return mix(key + (number + 1) * GAMMA & MASK)


def flips(fraction: float, seed: int, row: int) -> bool:
    return (draw(seed, 1, row, 0) >> 11) / 2**53 < fraction


def epoch_order(groups: int, seed: int, epoch: int) -> list[int]:
    order = list(range(groups))
    for number, place in enumerate(range(groups - 1, 0, -1)):
        other = draw(seed, 0, epoch, number) * (place + 1) >> 64
        order[place], order[other] = order[other], order[place]
    return order


def deal_step(costs: list[int], ranks: int, accumulate: int) -> list[list[tuple[list[int], list[float]]]]:
    def greedy(positions: list[int], bins: int) -> list[list[int]]:
        shares: list[list[int]] = [[] for _ in range(bins)]
        for position in positions:
            min(shares, key=lambda share: (sum(costs[p] for p in share), len(share))).append(position)
        return shares

    cheapest = min(range(len(costs)), key=lambda position: (costs[position], position))
    order = sorted(range(len(costs)), key=lambda position: (-costs[position], position))
    return [
        [(sorted(pack), [1.0] * len(pack)) if pack else ([cheapest], [0.0]) for pack in greedy(share, accumulate)]
        for share in greedy(order, ranks)
    ]
