"""The position in a random stream, kept and found again, also on a device of another kind."""

import torch

from routing_marl.randomness import RandomStream


def drawn(stream):
    return torch.rand(5, generator=stream.generator)


def test_a_stream_goes_on_from_its_position():
    stream, twin = RandomStream(1), RandomStream(2)
    drawn(stream)
    twin.load_state_dict(stream.state_dict())
    assert torch.equal(drawn(stream), drawn(twin))


def test_the_position_in_a_gpu_s_stream_is_a_seed_elsewhere():
    position, another = torch.arange(16, dtype=torch.uint8), torch.ones(16, dtype=torch.uint8)  # seed and offset
    numbers = []
    for state in (position, position, another):
        stream = RandomStream(1)
        stream.load_state_dict({"generator": state})
        numbers.append(drawn(stream))
    assert torch.equal(numbers[0], numbers[1])
    assert not torch.equal(numbers[0], numbers[2]) and not torch.equal(numbers[0], drawn(RandomStream(1)))
