"""Commands of the row "toy": two moons, 3,000 steps of 512 points and a network of the same size,
from the start to a picture of samples.

    python -m benchmarks.today.toy CONTENDER FOLDER STEPS

Our picture has the density of the model and the field of scores beside the samples. azula and
hackable-diffusion are used as their tutorials use them: a loop of steps, compiled where the library
is JAX's, no average of the weights, a picture of the samples.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

WIDTH, BLOCKS, BATCH, SAMPLES, SAMPLER_STEPS = 96, 3, 512, 5000, 18
RATE, STEPS, QUICK_STEPS = 3e-3, 3000, 100
CONFIG = "configs/toy/two_moons_edm.py"


def command(contender: str, folder: str, quick: bool) -> list[str]:
    """What is run: ours is the training, which ends with `field.png`."""
    steps = QUICK_STEPS if quick else STEPS
    if contender != "ours":
        return ["-m", "benchmarks.today.toy", contender, folder, str(steps)]
    options = [f"--config={CONFIG}", f"--workdir={folder}", f"--config.training.n_iters={steps}"]
    return ["main.py", "--mode=train", *options]


def azula(folder: pathlib.Path, steps: int) -> None:
    """EDM's denoiser of azula on a residual network like ours."""
    import torch
    from azula.denoise import KarrasDenoiser
    from azula.noise import VESchedule
    from azula.sample import HeunSampler

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frequencies = torch.nn.Buffer(torch.randn(WIDTH // 8))
            self.embed = torch.nn.Sequential(
                *(torch.nn.Linear(WIDTH // 4, WIDTH), torch.nn.SiLU()),
                *(torch.nn.Linear(WIDTH, WIDTH), torch.nn.SiLU()),
            )
            self.enter, self.leave = torch.nn.Linear(2, WIDTH), torch.nn.Linear(WIDTH, 2)
            self.first, self.second, self.time = (
                torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(BLOCKS))
                for _ in range(3)
            )

        def forward(self, x: Any, t: Any) -> Any:
            act = torch.nn.functional.silu
            angles = t.reshape(-1, 1) * self.frequencies
            embedding = self.embed(torch.cat([angles.sin(), angles.cos()], 1))
            h = self.enter(x)
            for first, second, time in zip(self.first, self.second, self.time, strict=True):
                h = h + second(act(first(act(h)) + time(embedding)))
            return self.leave(act(h))

    denoiser = KarrasDenoiser(Network(), VESchedule(2e-3, 80.0))
    print("parameters", sum(p.numel() for p in denoiser.parameters()))
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    data = torch.from_numpy(two_moons())
    for _ in range(steps):
        x = data[torch.randint(len(data), (BATCH,))]
        optimizer.zero_grad()
        denoiser.loss(x, torch.rand(BATCH)).backward()
        optimizer.step()
        schedule.step()
    sampler = HeunSampler(denoiser.eval(), steps=SAMPLER_STEPS, silent=True)
    with torch.no_grad():
        points = sampler(sampler.init((SAMPLES, 2)))
    plot(points.numpy(), folder)


def hackable(folder: pathlib.Path, steps: int) -> None:
    """Rectified flow of hackable-diffusion, whose MLP has no residual blocks."""
    import warnings

    warnings.simplefilter("ignore")
    import jax
    import jax.numpy as jnp
    import optax
    from hackable_diffusion.lib import diffusion_network
    from hackable_diffusion.lib.architecture import conditioning_encoder as conditioning
    from hackable_diffusion.lib.architecture import mlp
    from hackable_diffusion.lib.corruption import gaussian, schedules
    from hackable_diffusion.lib.sampling import gaussian_step_sampler, sampling, time_scheduling
    from hackable_diffusion.lib.training import gaussian_loss, time_sampling

    process = gaussian.GaussianProcess(schedule=schedules.RFSchedule())
    network = diffusion_network.DiffusionNetwork(
        backbone_network=mlp.ConditionalMLP(
            hidden_sizes_preprocess=(WIDTH, WIDTH, WIDTH),
            hidden_sizes_postprocess=(WIDTH,) * 6,
            activation="silu",
            zero_init_output=True,
            dropout_rate=0.0,
            conditioning_mechanism="sum",
        ),
        conditioning_encoder=conditioning.ConditioningEncoder(
            time_embedder=conditioning.SinusoidalTimeEmbedder(
                activation="silu", embedding_dim=WIDTH // 4, num_features=WIDTH
            ),
            conditioning_embedders={},
            merge_embeddings_fn=conditioning.SumEmbeddings(),
            conditioning_rules={"time": "sum"},
        ),
        prediction_type="velocity",
    )
    data, times = jnp.asarray(two_moons()), time_sampling.UniformTimeSampler()
    loss_fn = gaussian_loss.NoWeightGaussianLoss()
    params = network.initialize_variables((BATCH, 2), {}, jax.random.key(0))["params"]
    print("parameters", sum(leaf.size for leaf in jax.tree.leaves(params)))
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))

    @jax.jit
    def step(params: Any, moments: Any, key: Any) -> Any:
        draw, time_key, noise = jax.random.split(key, 3)
        x = data[jax.random.randint(draw, (BATCH,), 0, len(data))]
        time = times(time_key, x)
        noisy, target = process.corrupt(noise, x, time)

        def loss(params: Any) -> Any:
            options = {"time": time, "xt": noisy, "conditioning": None, "is_training": True}
            predicted = network.apply({"params": params}, **options)
            return jnp.mean(loss_fn(preds=predicted, targets=target, time=time))

        updates, moments = optimizer.update(jax.grad(loss)(params), moments, params)
        return optax.apply_updates(params, updates), moments

    moments, keys = optimizer.init(params), jax.random.split(jax.random.key(1), steps)
    for key in keys:
        params, moments = step(params, moments, key)

    def inference(time: Any, xt: Any, conditioning: Any) -> Any:
        options = {"time": time, "xt": xt, "conditioning": conditioning, "is_training": False}
        return network.apply({"params": params}, **options)

    sampler = sampling.DiffusionSampler(
        time_schedule=time_scheduling.UniformTimeSchedule(),
        stepper=gaussian_step_sampler.DDIMStep(corruption_process=process, stoch_coeff=0.0),
        num_steps=2 * SAMPLER_STEPS,
        store_trajectory=False,
    )
    start = jax.random.normal(jax.random.key(2), (SAMPLES, 2))
    last, _ = jax.jit(lambda key, x: sampler(inference, key, x))(jax.random.key(3), start)
    plot(jax.device_get(last.xt), folder)


def two_moons() -> Any:
    """10,000 points, float32 [N, 2], of mean zero and deviation near one."""
    import numpy as np

    rng = np.random.default_rng(0)
    angles, upper = rng.uniform(0, np.pi, 10_000), rng.random(10_000) < 0.5
    x = np.where(upper, np.cos(angles), 1 - np.cos(angles))
    y = np.where(upper, np.sin(angles), 0.5 - np.sin(angles))
    points = np.stack([x, y], 1) + 0.05 * rng.standard_normal((10_000, 2))
    return ((points - points.mean(0)) / points.std()).astype(np.float32)


def plot(points: Any, folder: pathlib.Path) -> None:
    """Writes `scatter.png`."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(5, 5))
    axes.scatter(points[:, 0], points[:, 1], s=1)
    axes.set_aspect("equal")
    figure.savefig(folder / "scatter.png")


def run(contender: str, folder: str, steps: str) -> None:
    {"azula": azula, "hackable": hackable}[contender](pathlib.Path(folder), int(steps))


if __name__ == "__main__":
    run(*sys.argv[1:])
