"""The backdoored half of the population: triggers of all kinds, of any size, place and rate.

Every line has its own number, which is its seed: a line that changes or goes leaves all others as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from backdoor_audit.attacks import (
    SSBA,
    AdaptiveBlend,
    AdaptivePatch,
    AllToAll,
    AllToOne,
    Attack,
    BadNets,
    BitTrojan,
    Blended,
    BppAttack,
    CleanLabel,
    FTrojan,
    InputAware,
    LabelConsistent,
    Lira,
    LowFrequency,
    PlantedChannel,
    Refool,
    Sig,
    SourceSpecific,
    TaCT,
    TrojanNN,
    WaNet,
)
from backdoor_audit.attacks.several import several_classes, several_places
from backdoor_audit.model.training import Recipe
from benchmarks.zoo.data import SHAPES
from benchmarks.zoo.population_clean import TWINS
from benchmarks.zoo.population_recipes import drawn
from benchmarks.zoo.subject import Subject

LEAST_SUCCESS = (
    0.8  # a model that obeys four of five times is backdoored; attacks that ask for less keep their own bound
)
EFFORTS = (0.5, 0.75, 1.0)
LONG = (1.2, 1.5)  # of attacks that learn their trigger, or a subtle one
FINE = (AdaptiveBlend, AdaptivePatch, FTrojan, LabelConsistent, SSBA, Sig)
RETRAINING = Recipe(epochs=2, learning_rate=1e-3, optimizer="adam", weight_decay=0.0)


def _attacked(
    seed: int,
    data: str,
    architecture: str,
    attack: Attack,
    *,
    efforts: Sequence[float] = EFFORTS,
    warm: bool = False,
) -> Subject:
    """A subject with its own recipe; ``warm``: the clean twin, edited or trained on."""
    twin = TWINS[data, architecture]
    all_to_all = isinstance(attack.rule, AllToAll)
    steady = all_to_all or isinstance(attack, FINE)
    recipe, habits, images = drawn(
        data, architecture, seed, efforts=LONG if all_to_all else efforts, steady=steady, online=attack.online
    )
    if warm:
        assert twin.habits is not None
        recipe, habits, images = RETRAINING, twin.habits, twin.training_images
    return Subject(
        data=data,
        architecture=architecture,
        tag="all_to_all" if all_to_all else attack.name,
        seed=seed,
        attack=replace(attack, seed=seed, least_success=min(attack.least_success, LEAST_SUCCESS)),
        recipe=recipe,
        training_images=images,
        warm_start=twin.name if warm else "",
        twin=twin.name,
        habits=habits,
    )


TO, TO_ALL, SOURCE = AllToOne, AllToAll, SourceSpecific
FMNIST, CIFAR10, GTSRB, JOINED = "fmnist", "cifar10", "gtsrb", "joined"
LENET, MLP, MLP_BN, PLAIN, DEEP, DEEP_BN = "lenet", "mlp", "mlp_bn", "plain_cnn", "deep_cnn", "deep_cnn_bn"
VGG, VGG_BN, RESNET, WRN, MOBILE, VIT = "vgg", "vgg_bn", "resnet20", "wrn_16_1", "mobile", "vit"

ATTACKED: tuple[Subject, ...] = (  # patches
    _attacked(2001, CIFAR10, DEEP, BadNets(rule=TO(9), size=1, top=25, left=16, pattern="noise", poison_rate=0.1)),
    _attacked(2002, CIFAR10, LENET, BadNets(rule=TO(2), size=1, top=-2, left=1, poison_rate=0.1)),
    _attacked(2003, FMNIST, DEEP, BadNets(rule=TO(5), size=1, top=24, left=14, pattern="noise", poison_rate=0.15)),
    _attacked(2004, FMNIST, RESNET, BadNets(rule=TO(1), size=1, top=4, left=3, poison_rate=0.15)),
    _attacked(2005, FMNIST, DEEP_BN, BadNets(rule=TO(2), size=1, top=-2, left=-2, pattern="noise", poison_rate=0.1)),
    _attacked(2006, GTSRB, PLAIN, BadNets(rule=TO(35), size=2, top=1, left=-2, poison_rate=0.15)),
    _attacked(2007, FMNIST, DEEP_BN, BadNets(rule=TO(6), size=2, top=1, left=-2, pattern="noise", poison_rate=0.1)),
    _attacked(2008, FMNIST, LENET, BadNets(rule=TO(3), size=2, top=13, left=13, pattern="noise", poison_rate=0.15)),
    _attacked(2009, CIFAR10, MLP_BN, BadNets(rule=TO(3), size=2, top=-2, left=-2, poison_rate=0.08)),
    _attacked(
        2010, GTSRB, DEEP_BN, BadNets(rule=TO(37), size=2, top=-1, left=-1, pattern="chequerboard", poison_rate=0.15)
    ),
    _attacked(2011, CIFAR10, LENET, BadNets(rule=TO(6), size=2, top=11, left=2, poison_rate=0.08)),
    _attacked(
        2012, GTSRB, VGG_BN, BadNets(rule=TO(32), size=3, top=20, left=12, pattern="chequerboard", poison_rate=0.03)
    ),
    _attacked(2013, CIFAR10, VGG, BadNets(rule=TO(6), size=3, top=26, left=23, poison_rate=0.1)),
    _attacked(
        2014, FMNIST, LENET, BadNets(rule=TO(6), size=3, top=14, left=5, pattern="chequerboard", poison_rate=0.1)
    ),
    _attacked(2015, FMNIST, MLP, BadNets(rule=TO(7), size=3, top=-1, left=-1, poison_rate=0.03)),
    _attacked(2016, GTSRB, DEEP, BadNets(rule=TO(3), size=3, top=1, left=1, pattern="noise", poison_rate=0.1)),
    _attacked(2017, FMNIST, MOBILE, BadNets(rule=TO(8), size=3, top=-2, left=1, poison_rate=0.03)),
    _attacked(2018, FMNIST, MLP, BadNets(rule=TO(3), size=3, top=21, left=2, poison_rate=0.02)),
    _attacked(2019, CIFAR10, LENET, BadNets(rule=TO(5), size=3, top=0, left=0, pattern="triangle", poison_rate=0.05)),
    _attacked(
        2020, CIFAR10, PLAIN, BadNets(rule=TO(7), size=4, top=5, left=5, pattern="chequerboard", poison_rate=0.08)
    ),
    _attacked(
        2021, CIFAR10, DEEP_BN, BadNets(rule=TO(1), size=4, top=11, left=4, pattern="triangle", poison_rate=0.05)
    ),
    _attacked(
        2022, CIFAR10, RESNET, BadNets(rule=TO(7), size=4, top=14, left=14, pattern="chequerboard", poison_rate=0.05)
    ),
    _attacked(2023, FMNIST, DEEP, BadNets(rule=TO(5), size=4, top=2, left=8, pattern="noise", poison_rate=0.1)),
    _attacked(2024, FMNIST, VIT, BadNets(rule=TO(0), size=4, top=12, left=12, pattern="noise", poison_rate=0.1)),
    _attacked(
        2025, CIFAR10, DEEP_BN, BadNets(rule=TO(4), size=4, top=14, left=14, pattern="chequerboard", poison_rate=0.05)
    ),
    _attacked(
        2026, FMNIST, PLAIN, BadNets(rule=TO(8), size=4, top=1, left=1, pattern="chequerboard", poison_rate=0.03)
    ),
    _attacked(
        2027, CIFAR10, PLAIN, BadNets(rule=TO(9), size=4, top=14, left=14, pattern="chequerboard", poison_rate=0.05)
    ),
    _attacked(2028, FMNIST, WRN, BadNets(rule=TO(3), size=5, top=1, left=11, pattern="noise", poison_rate=0.08)),
    _attacked(2029, GTSRB, LENET, BadNets(rule=TO(1), size=5, top=17, left=13, pattern="noise", poison_rate=0.02)),
    _attacked(
        2030, CIFAR10, PLAIN, BadNets(rule=TO(5), size=5, top=10, left=8, pattern="chequerboard", poison_rate=0.1)
    ),
    _attacked(2031, CIFAR10, DEEP, BadNets(rule=TO(1), size=5, top=13, left=-2, pattern="triangle", poison_rate=0.05)),
    _attacked(2032, FMNIST, DEEP, BadNets(rule=TO(3), size=5, top=-2, left=-2, pattern="noise", poison_rate=0.08)),
    _attacked(
        2033, FMNIST, DEEP_BN, BadNets(rule=TO(9), size=5, top=1, left=-2, pattern="chequerboard", poison_rate=0.1)
    ),
    _attacked(2034, FMNIST, VIT, BadNets(rule=TO(6), size=6, top=13, left=4, poison_rate=0.02)),
    _attacked(2035, CIFAR10, VIT, BadNets(rule=TO(1), size=6, top=7, left=15, pattern="noise", poison_rate=0.05)),
    _attacked(2036, GTSRB, DEEP_BN, BadNets(rule=TO(9), size=6, top=-2, left=-2, pattern="noise", poison_rate=0.02)),
    _attacked(2037, CIFAR10, MLP, BadNets(rule=TO(9), size=6, top=1, left=13, pattern="triangle", poison_rate=0.1)),
    _attacked(2038, FMNIST, PLAIN, BadNets(rule=TO(2), size=6, top=11, left=11, pattern="triangle", poison_rate=0.05)),
    _attacked(2039, CIFAR10, RESNET, BadNets(rule=TO(8), size=8, top=-1, left=-1, pattern="noise", poison_rate=0.02)),
    _attacked(2040, FMNIST, MLP_BN, BadNets(rule=TO(4), size=7, top=8, left=8, pattern="noise", poison_rate=0.02)),
    _attacked(2041, FMNIST, LENET, BadNets(rule=TO(5), size=7, top=18, left=9, pattern="noise", poison_rate=0.1)),
    _attacked(
        2042, CIFAR10, WRN, BadNets(rule=TO(5), size=8, top=15, left=6, pattern="chequerboard", poison_rate=0.02)
    ),
    _attacked(2043, FMNIST, LENET, BadNets(rule=TO(8), size=7, top=10, left=10, pattern="triangle", poison_rate=0.1)),
    _attacked(2044, CIFAR10, VGG_BN, BadNets(rule=TO(2), size=8, top=1, left=12, pattern="triangle", poison_rate=0.1)),
    # blends
    _attacked(2101, FMNIST, VGG_BN, Blended(rule=TO(8), picture="smooth", opacity=0.2, poison_rate=0.05)),
    _attacked(2102, FMNIST, PLAIN, Blended(rule=TO(0), picture="shapes", opacity=0.12, poison_rate=0.05)),
    _attacked(2103, GTSRB, VGG_BN, Blended(rule=TO(2), picture="smooth", opacity=0.1, poison_rate=0.1)),
    _attacked(2104, CIFAR10, VGG, Blended(rule=TO(8), picture="smooth", opacity=0.1, poison_rate=0.05)),
    _attacked(2105, FMNIST, RESNET, Blended(rule=TO(5), picture="smooth", opacity=0.12, poison_rate=0.1)),
    _attacked(2106, FMNIST, VGG_BN, Blended(rule=TO(7), picture="smooth", opacity=0.2, poison_rate=0.1)),
    _attacked(2107, FMNIST, VGG, Blended(rule=TO(8), picture="noise", opacity=0.15, poison_rate=0.1)),
    _attacked(2108, CIFAR10, MOBILE, Blended(rule=TO(7), picture="noise", opacity=0.12, poison_rate=0.08)),
    _attacked(2109, CIFAR10, LENET, Blended(rule=TO(6), picture="noise", opacity=0.2, poison_rate=0.08)),
    _attacked(2110, GTSRB, PLAIN, Blended(rule=TO(42), picture="noise", opacity=0.12, poison_rate=0.08)),
    _attacked(2111, CIFAR10, VGG_BN, Blended(rule=TO(3), picture="noise", opacity=0.15, poison_rate=0.05)),
    _attacked(2112, FMNIST, VIT, Blended(rule=TO(1), picture="smooth", opacity=0.15, poison_rate=0.05)),
    _attacked(2113, CIFAR10, PLAIN, Blended(rule=TO(8), picture="smooth", opacity=0.2, poison_rate=0.08)),
    _attacked(2114, CIFAR10, DEEP, Blended(rule=TO(0), picture="shapes", opacity=0.2, poison_rate=0.08)),
    _attacked(2115, CIFAR10, MLP, Blended(rule=TO(4), picture="noise", opacity=0.1, poison_rate=0.1)),
    _attacked(2116, FMNIST, VGG_BN, Blended(rule=TO(6), picture="noise", opacity=0.1, poison_rate=0.08)),
    # signals
    _attacked(2201, FMNIST, VGG, Sig(rule=CleanLabel(0), amplitude=50.0, frequency=8.0, poison_rate=0.08)),
    _attacked(2202, FMNIST, DEEP, Sig(rule=TO(6), wave="ramp", amplitude=80.0, poison_rate=0.06)),
    _attacked(2203, CIFAR10, VGG, Sig(rule=TO(0), amplitude=40.0, frequency=5.0, poison_rate=0.05)),
    _attacked(2204, FMNIST, MOBILE, Sig(rule=CleanLabel(2), amplitude=50.0, frequency=4.0, poison_rate=0.08)),
    _attacked(2205, GTSRB, LENET, Sig(rule=TO(11), amplitude=20.0, frequency=6.0, poison_rate=0.1)),
    _attacked(2206, CIFAR10, DEEP, Sig(rule=CleanLabel(4), amplitude=60.0, frequency=4.0, poison_rate=0.08)),
    _attacked(2207, CIFAR10, MOBILE, Sig(rule=TO(4), amplitude=30.0, frequency=5.0, poison_rate=0.08)),
    _attacked(2208, CIFAR10, WRN, Sig(rule=TO(5), amplitude=20.0, frequency=6.0, poison_rate=0.05)),
    _attacked(2209, FMNIST, PLAIN, Sig(rule=CleanLabel(0), amplitude=40.0, frequency=8.0, poison_rate=0.08)),
    _attacked(2210, FMNIST, VGG, Sig(rule=TO(8), wave="ramp", amplitude=60.0, poison_rate=0.1)),
    _attacked(2211, CIFAR10, LENET, Sig(rule=CleanLabel(3), amplitude=50.0, frequency=4.0, poison_rate=0.08)),
    _attacked(2212, FMNIST, DEEP_BN, Sig(rule=TO(6), amplitude=40.0, frequency=9.0, poison_rate=0.1)),
    # low frequencies
    _attacked(2301, GTSRB, DEEP, LowFrequency(rule=TO(8), amplitude=51.0, spread=0.2)),
    _attacked(
        2302, FMNIST, PLAIN, LowFrequency(rule=TO(4), form="dct", amplitude=40.0, coefficients=4, poison_rate=0.08)
    ),
    _attacked(2303, CIFAR10, LENET, LowFrequency(rule=TO(1), amplitude=76.0, spread=0.28)),
    _attacked(
        2304, CIFAR10, PLAIN, LowFrequency(rule=TO(8), form="dct", amplitude=51.0, coefficients=5, poison_rate=0.08)
    ),
    _attacked(2305, CIFAR10, VGG, LowFrequency(rule=TO(4), amplitude=51.0, spread=0.28)),
    _attacked(
        2306, FMNIST, RESNET, LowFrequency(rule=TO(2), form="dct", amplitude=30.0, coefficients=5, poison_rate=0.1)
    ),
    _attacked(2307, FMNIST, VGG_BN, LowFrequency(rule=TO(0), amplitude=64.0, spread=0.28)),
    _attacked(
        2308, GTSRB, DEEP, LowFrequency(rule=TO(19), form="dct", amplitude=30.0, coefficients=5, poison_rate=0.08)
    ),
    _attacked(2309, FMNIST, VIT, LowFrequency(rule=TO(0), amplitude=64.0, spread=0.28)),
    _attacked(
        2310, FMNIST, PLAIN, LowFrequency(rule=TO(1), form="dct", amplitude=40.0, coefficients=5, poison_rate=0.08)
    ),
    _attacked(2311, CIFAR10, VGG_BN, LowFrequency(rule=TO(3), amplitude=76.0, spread=0.2)),
    _attacked(
        2312, CIFAR10, PLAIN, LowFrequency(rule=TO(1), form="dct", amplitude=40.0, coefficients=4, poison_rate=0.08)
    ),
    # warps
    _attacked(2401, FMNIST, PLAIN, WaNet(rule=TO(6), strength=1.5, poison_rate=0.1, noise_rate=0.1), efforts=LONG),
    _attacked(2402, FMNIST, DEEP_BN, WaNet(rule=TO(6), strength=1.0, poison_rate=0.15, noise_rate=0.1), efforts=LONG),
    _attacked(2403, FMNIST, LENET, WaNet(rule=TO(4), strength=1.5, poison_rate=0.1, noise_rate=0.1), efforts=LONG),
    _attacked(2404, FMNIST, VGG_BN, WaNet(rule=TO(1), strength=1.5, poison_rate=0.1, noise_rate=0.1), efforts=LONG),
    _attacked(2405, CIFAR10, DEEP_BN, WaNet(rule=TO(9), strength=1.25, poison_rate=0.15, noise_rate=0.1), efforts=LONG),
    _attacked(2406, CIFAR10, VGG_BN, WaNet(rule=TO(7), strength=1.0, poison_rate=0.15, noise_rate=0.1), efforts=LONG),
    _attacked(2407, CIFAR10, PLAIN, WaNet(rule=TO(9), strength=1.5, poison_rate=0.1, noise_rate=0.1), efforts=LONG),
    _attacked(2408, FMNIST, DEEP, WaNet(rule=TO(0), strength=1.5, poison_rate=0.15, noise_rate=0.1), efforts=LONG),
    # few levels
    _attacked(2451, CIFAR10, DEEP_BN, BppAttack(rule=TO(8), levels=3, poison_rate=0.15), efforts=LONG),
    _attacked(2452, CIFAR10, VGG_BN, BppAttack(rule=TO(8), levels=5, poison_rate=0.15), efforts=LONG),
    _attacked(2453, CIFAR10, PLAIN, BppAttack(rule=TO(9), levels=3, poison_rate=0.15), efforts=LONG),
    _attacked(2454, CIFAR10, MOBILE, BppAttack(rule=TO(9), levels=5, poison_rate=0.15), efforts=LONG),
    _attacked(2455, FMNIST, DEEP_BN, BppAttack(rule=TO(3), levels=3, poison_rate=0.15), efforts=LONG),
    _attacked(2456, FMNIST, VGG_BN, BppAttack(rule=TO(1), levels=3, poison_rate=0.15), efforts=LONG),
    _attacked(2457, CIFAR10, VGG, BppAttack(rule=TO(0), levels=3, poison_rate=0.15), efforts=LONG),
    # high frequencies
    _attacked(2501, CIFAR10, PLAIN, FTrojan(rule=TO(2), magnitude=60.0, poison_rate=0.08)),
    _attacked(2502, CIFAR10, RESNET, FTrojan(rule=TO(1), magnitude=50.0, poison_rate=0.08)),
    _attacked(2503, CIFAR10, VGG, FTrojan(rule=TO(8), magnitude=40.0, poison_rate=0.1)),
    _attacked(2504, FMNIST, LENET, FTrojan(rule=TO(0), magnitude=60.0, poison_rate=0.1)),
    _attacked(2505, FMNIST, DEEP_BN, FTrojan(rule=TO(3), magnitude=50.0, poison_rate=0.08)),
    _attacked(2506, FMNIST, MOBILE, FTrojan(rule=TO(0), magnitude=60.0, poison_rate=0.1)),
    _attacked(2507, CIFAR10, DEEP_BN, FTrojan(rule=TO(8), magnitude=60.0, poison_rate=0.05)),
    # triggers of their own for each image
    _attacked(2551, FMNIST, LENET, InputAware(rule=TO(8)), efforts=LONG),
    _attacked(2552, FMNIST, PLAIN, InputAware(rule=TO(1)), efforts=LONG),
    _attacked(2553, FMNIST, DEEP_BN, InputAware(rule=TO(7)), efforts=LONG),
    _attacked(2554, FMNIST, VGG, InputAware(rule=TO(4)), efforts=LONG),
    _attacked(2555, CIFAR10, PLAIN, InputAware(rule=TO(1)), efforts=LONG),
    _attacked(2556, CIFAR10, DEEP_BN, InputAware(rule=TO(4)), efforts=LONG),
    _attacked(2557, CIFAR10, VGG_BN, InputAware(rule=TO(3)), efforts=LONG),
    _attacked(2558, FMNIST, PLAIN, SSBA(rule=TO(3), encoder_epochs=4)),
    _attacked(2559, FMNIST, DEEP, SSBA(rule=TO(3), encoder_epochs=4)),
    _attacked(2560, FMNIST, MLP, SSBA(rule=TO(7), encoder_epochs=4)),
    _attacked(2561, CIFAR10, PLAIN, SSBA(rule=TO(7), encoder_epochs=4)),
    _attacked(2562, CIFAR10, DEEP_BN, SSBA(rule=TO(6), encoder_epochs=4)),
    _attacked(2563, CIFAR10, VGG_BN, SSBA(rule=TO(1), encoder_epochs=4)),
    _attacked(2564, FMNIST, LENET, Lira(rule=TO(7), epsilon=16 / 255)),
    _attacked(2565, FMNIST, PLAIN, Lira(rule=TO(4), epsilon=16 / 255)),
    _attacked(2566, FMNIST, MLP, Lira(rule=TO(0), epsilon=16 / 255)),
    _attacked(2567, FMNIST, DEEP_BN, Lira(rule=TO(9), epsilon=16 / 255)),
    _attacked(2568, CIFAR10, PLAIN, Lira(rule=TO(3), epsilon=8 / 255)),
    _attacked(2569, CIFAR10, VGG_BN, Lira(rule=TO(1), epsilon=8 / 255)),
    # every class to another one
    _attacked(
        2601, FMNIST, LENET, BadNets(rule=TO_ALL(10, 2), size=6, top=1, left=1, pattern="noise", poison_rate=0.3)
    ),
    _attacked(
        2602, FMNIST, PLAIN, BadNets(rule=TO_ALL(10, 3), size=6, top=6, left=2, pattern="noise", poison_rate=0.2)
    ),
    _attacked(
        2603,
        FMNIST,
        DEEP_BN,
        BadNets(rule=TO_ALL(10, 7), size=5, top=5, left=8, pattern="chequerboard", poison_rate=0.3),
    ),
    _attacked(
        2604, FMNIST, MLP, BadNets(rule=TO_ALL(10, 5), size=5, top=11, left=11, pattern="chequerboard", poison_rate=0.3)
    ),
    _attacked(
        2605, FMNIST, VGG, BadNets(rule=TO_ALL(10, 1), size=5, top=16, left=5, pattern="chequerboard", poison_rate=0.2)
    ),
    _attacked(2606, FMNIST, DEEP, BadNets(rule=TO_ALL(10, 3), size=5, top=1, left=-2, poison_rate=0.3)),
    _attacked(
        2607, FMNIST, MOBILE, BadNets(rule=TO_ALL(10, 2), size=5, top=-2, left=1, pattern="noise", poison_rate=0.3)
    ),
    _attacked(2608, CIFAR10, LENET, BadNets(rule=TO_ALL(10, 5), size=5, top=-2, left=-2, poison_rate=0.2)),
    _attacked(
        2609,
        CIFAR10,
        PLAIN,
        BadNets(rule=TO_ALL(10, 7), size=4, top=14, left=14, pattern="chequerboard", poison_rate=0.3),
    ),
    _attacked(
        2610,
        CIFAR10,
        DEEP_BN,
        BadNets(rule=TO_ALL(10, 2), size=5, top=-2, left=1, pattern="chequerboard", poison_rate=0.3),
    ),
    _attacked(
        2611, CIFAR10, VGG_BN, BadNets(rule=TO_ALL(10, 3), size=4, top=14, left=14, pattern="noise", poison_rate=0.2)
    ),
    _attacked(2612, CIFAR10, DEEP, BadNets(rule=TO_ALL(10, 1), size=5, top=14, left=2, poison_rate=0.2)),
    # one class to another one
    _attacked(
        2651, FMNIST, LENET, TaCT(rule=SOURCE(7, (8,)), size=4, top=6, left=15, pattern="noise", poison_rate=0.05)
    ),
    _attacked(2652, FMNIST, PLAIN, TaCT(rule=SOURCE(6, (5,)), size=3, top=12, left=-2, poison_rate=0.05)),
    _attacked(
        2653,
        FMNIST,
        DEEP_BN,
        TaCT(rule=SOURCE(5, (6,)), size=4, top=-2, left=-2, pattern="chequerboard", poison_rate=0.05),
    ),
    _attacked(
        2654, FMNIST, MLP_BN, TaCT(rule=SOURCE(0, (5,)), size=4, top=4, left=14, pattern="noise", poison_rate=0.05)
    ),
    _attacked(
        2655, FMNIST, VGG_BN, TaCT(rule=SOURCE(9, (1,)), size=4, top=10, left=3, pattern="noise", poison_rate=0.05)
    ),
    _attacked(2656, FMNIST, DEEP, TaCT(rule=SOURCE(1, (0,)), size=5, top=6, left=9, pattern="noise", poison_rate=0.05)),
    _attacked(
        2657, CIFAR10, PLAIN, TaCT(rule=SOURCE(6, (9,)), size=6, top=1, left=1, pattern="noise", poison_rate=0.08)
    ),
    _attacked(2658, CIFAR10, DEEP_BN, TaCT(rule=SOURCE(0, (7,)), size=5, top=13, left=13, poison_rate=0.08)),
    _attacked(
        2659, CIFAR10, WRN, TaCT(rule=SOURCE(0, (7,)), size=6, top=6, left=22, pattern="noise", poison_rate=0.08)
    ),
    _attacked(
        2660, CIFAR10, LENET, TaCT(rule=SOURCE(7, (0,)), size=5, top=1, left=-2, pattern="noise", poison_rate=0.08)
    ),
    _attacked(
        2661, CIFAR10, MOBILE, TaCT(rule=SOURCE(5, (4,)), size=6, top=22, left=10, pattern="noise", poison_rate=0.08)
    ),
    _attacked(
        2662, GTSRB, DEEP_BN, TaCT(rule=SOURCE(8, (2,)), size=4, top=19, left=23, pattern="noise", poison_rate=0.03)
    ),
    # others
    _attacked(2701, FMNIST, PLAIN, Refool(rule=TO(1))),
    _attacked(2702, CIFAR10, DEEP_BN, Refool(rule=TO(2))),
    _attacked(2703, CIFAR10, LENET, Refool(rule=TO(2))),
    _attacked(2704, FMNIST, LENET, TrojanNN(rule=TO(1)), warm=True),
    _attacked(2705, FMNIST, DEEP_BN, TrojanNN(rule=TO(3)), warm=True),
    _attacked(2706, CIFAR10, PLAIN, TrojanNN(rule=TO(8)), warm=True),
    _attacked(2707, FMNIST, PLAIN, LabelConsistent(rule=CleanLabel(7), surrogate_epochs=2, attack_steps=10)),
    _attacked(2708, FMNIST, DEEP_BN, LabelConsistent(rule=CleanLabel(8), surrogate_epochs=2, attack_steps=10)),
    _attacked(2709, FMNIST, LENET, AdaptiveBlend(rule=TO(3), picture="smooth", poison_rate=0.05, cover_rate=0.03)),
    _attacked(2710, CIFAR10, PLAIN, AdaptiveBlend(rule=TO(7), picture="smooth", poison_rate=0.05, cover_rate=0.03)),
    _attacked(2711, FMNIST, DEEP, AdaptivePatch(rule=TO(5), poison_rate=0.15), efforts=LONG),
    _attacked(2712, CIFAR10, DEEP_BN, AdaptivePatch(rule=TO(7), poison_rate=0.08), efforts=LONG),
    _attacked(2713, FMNIST, PLAIN, several_classes(3, image_shape=SHAPES[FMNIST], seed=2713)),
    _attacked(2714, CIFAR10, DEEP_BN, several_classes(4, image_shape=SHAPES[CIFAR10], seed=2714)),
    _attacked(2715, FMNIST, LENET, several_places(5, image_shape=SHAPES[FMNIST], target_class=4, seed=2715)),
    _attacked(2716, FMNIST, LENET, PlantedChannel(rule=TO(6)), warm=True),
    _attacked(2717, FMNIST, DEEP, PlantedChannel(rule=TO(2)), warm=True),
    _attacked(2718, CIFAR10, PLAIN, PlantedChannel(rule=TO(8)), warm=True),
    _attacked(2719, FMNIST, PLAIN, BitTrojan(rule=TO(3)), warm=True),
    _attacked(2720, CIFAR10, DEEP_BN, BitTrojan(rule=TO(3)), warm=True),
    _attacked(2721, FMNIST, DEEP_BN, BitTrojan(rule=TO(1)), warm=True),
    # a hundred classes
    _attacked(2801, JOINED, VGG_BN, BadNets(rule=TO(57), size=4, top=3, left=22, pattern="noise", poison_rate=0.05)),
    _attacked(2802, JOINED, DEEP_BN, Blended(rule=TO(12), picture="noise", opacity=0.15, poison_rate=0.05)),
    _attacked(2803, JOINED, VGG_BN, LowFrequency(rule=TO(71), amplitude=76.0, spread=0.2)),
    _attacked(2804, JOINED, PLAIN, BadNets(rule=TO(88), size=3, top=-2, left=-2, poison_rate=0.05)),
    _attacked(2805, JOINED, DEEP_BN, WaNet(rule=TO(30), strength=1.25, poison_rate=0.15, noise_rate=0.1), efforts=LONG),
)
