"""The training step of benchmark.py in PyTorch, eager and compiled, and in JAX under jit.

Each starts from tinymup's own initial parameters and computes the same network. It uses the
library's own function for an operation, unless another way is faster.
"""
import functools
import importlib.util
import math

from tinymup.backend import to_host
from tinymup.lab.config import build
from tinymup.network import initialize


def setting(config):
    """(network, its initial parameters as NumPy arrays)"""
    network = build(config)
    params = initialize(network.rows, config.seed, config.dtype)
    return network, {name: to_host(w) for name, w in params.items()}


class Torch:
    """PyTorch eager, with what is fastest on a CPU.

    scaled_dot_product_attention is 3 to 7 % faster than matmul, softmax and matmul. AdamW fused,
    foreach, or as a loop over the parameters differ by less than the noise.
    """

    name, package, family = "PyTorch eager", "torch", "PyTorch"
    compiled = False

    def __init__(self, config, threads):
        import torch
        if config.device == "gpu" and not torch.cuda.is_available():
            raise RuntimeError("PyTorch finds no GPU")
        torch.set_num_threads(threads)
        self.torch = torch
        self.tensor = functools.partial(
            torch.tensor, device="cuda" if config.device == "gpu" else "cpu")
        self.network, params = setting(config)
        self.params, groups = {}, {}
        for row in self.network.rows:                     # F.linear takes (fan_out, fan_in)
            w = params[row.name] if row.name == "embedding" else params[row.name].T.copy()
            self.params[row.name] = self.tensor(w, requires_grad=True)
            groups.setdefault((row.lr, row.eps), []).append(self.params[row.name])
        groups = [{"params": ws, "lr": lr, "eps": eps} for (lr, eps), ws in groups.items()]
        self.optimizer = torch.optim.AdamW(groups, betas=config.betas, weight_decay=0, fused=True)
        a = self.network.architecture
        frequency = a.rope_base ** (-self.tensor(range(0, a.head_dim, 2)) / a.head_dim)
        angle = (self.tensor(range(config.seq))[:, None] * frequency).repeat(1, 2)    # (T, D)
        self.cos, self.sin = angle.cos(), angle.sin()
        self.loss = (torch.compile(self.forward, dynamic=False, fullgraph=True)
                     if self.compiled else self.forward)

    def dense(self, x, params, name):
        """x wᵀ with w (fan_out, fan_in)."""
        y, a = self.torch.nn.functional.linear(x, params[name]), self.network.scales.mult[name].y
        return y if a == 1 else y * a

    def rope(self, x):
        """Rotates pairs          x (B, H, T, D)"""
        half = x.shape[-1] // 2
        turned = self.torch.cat((-x[..., half:], x[..., :half]), -1)
        return x * self.cos + turned * self.sin

    def attention(self, x, params, block, shape):
        """Causal attention          x (N, C), shape (B, T)"""
        q, k, v = (self.dense(x, params, block + name).view(
            *shape, -1, self.network.architecture.head_dim).transpose(1, 2)
            for name in ("query", "key", "value"))
        y = self.torch.nn.functional.scaled_dot_product_attention(
            self.rope(q), self.rope(k), v, is_causal=True, scale=self.network.scales.attention)
        return self.dense(y.transpose(1, 2).reshape(x.shape), params, block + "attention_out")

    def forward(self, params, ids, targets):
        """The loss."""
        F, a = self.torch.nn.functional, self.network.architecture
        norm = functools.partial(F.rms_norm, normalized_shape=(a.width,), eps=a.norm_eps)
        x = F.embedding(ids.reshape(-1), params["embedding"])
        x = x * self.network.scales.mult["embedding"].y
        for i in range(a.depth):
            block = f"block{i}."
            x = x + self.attention(norm(x), params, block, ids.shape)
            hidden = F.gelu(self.dense(norm(x), params, block + "up"), approximate="tanh")
            x = x + self.dense(hidden, params, block + "down")
        return F.cross_entropy(self.dense(norm(x), params, "output"), targets.reshape(-1))

    def batch(self, ids, targets):
        """A batch of NumPy arrays as the step takes it."""
        return self.tensor(ids), self.tensor(targets)

    def step(self, t, batch):
        """The loss, on the device, after which the parameters are updated."""
        loss = self.loss(self.params, *batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def product(self, a, b):
        """A function that computes a @ b and returns it."""
        a, b = self.tensor(a), self.tensor(b)
        return functools.partial(self.torch.matmul, a, b, out=self.torch.matmul(a, b))

    def wait(self, x):
        """Returns when x is computed."""
        if x.device.type == "cuda":
            self.torch.cuda.synchronize()

    @staticmethod
    def release():
        """Drops compiled code, which holds parameters, and gives cached memory to the device."""
        import torch
        torch._dynamo.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @staticmethod
    def about():
        """Version and BLAS."""
        import torch
        built = next((line.strip(" -") for line in torch.__config__.show().splitlines()
                      if "Math Kernel Library Version" in line), "a BLAS other than MKL")
        return (f"PyTorch {torch.__version__}, {built.split(' for ')[0]}, "
                f"CPU capability {torch.backends.cpu.get_cpu_capability()}")


class CompiledTorch(Torch):
    """PyTorch with forward and backward pass compiled by torch.compile in its default mode."""

    name, compiled = "torch.compile", True


class Jax:
    """JAX: the whole step, with AdamW, is one function under jit, and its buffers are donated.

    On a CPU jax.nn.dot_product_attention is 4 to 13 % slower than the products written out below.
    """

    name, package, family = "JAX jit", "jax", "JAX"

    def __init__(self, config, threads):
        import jax
        if config.device == "gpu" and jax.default_backend() != "gpu":
            raise RuntimeError("JAX finds no GPU")
        jax.config.update("jax_default_matmul_precision", "highest")   # float32 on a GPU, not TF32
        jax.config.update("jax_cpu_enable_async_dispatch", False)      # run where the clock runs
        self.jax, self.betas = jax, config.betas
        self.device = jax.devices(config.device)[0]
        self.network, params = setting(config)
        self.params = {name: self.array(w) for name, w in params.items()}
        self.moments = {name: (self.array(0 * w), self.array(0 * w)) for name, w in params.items()}
        self.train = jax.jit(self.trained, donate_argnums=(0, 1))
        self.matmul = jax.jit(jax.numpy.matmul)

    def array(self, x):
        """A NumPy array on the device."""
        return self.jax.device_put(x, self.device)

    def dense(self, x, params, name):
        """x w"""
        y, a = x @ params[name], self.network.scales.mult[name].y
        return y if a == 1 else y * a

    def norm(self, x):
        """RMSNorm."""
        jnp, eps = self.jax.numpy, self.network.architecture.norm_eps
        return x * self.jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)

    def rope(self, x):
        """Rotates pairs          x (B, T, H, D)"""
        jnp, half = self.jax.numpy, x.shape[-1] // 2
        base = self.network.architecture.rope_base
        frequency = jnp.exp(jnp.arange(half) * (-math.log(base) / half))
        angle = jnp.arange(x.shape[1])[:, None, None] * frequency
        cos, sin, a, b = jnp.cos(angle), jnp.sin(angle), x[..., :half], x[..., half:]
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def attention(self, x, params, block, shape):
        """Causal attention          x (N, C), shape (B, T)"""
        jnp = self.jax.numpy
        q, k, v = (self.dense(x, params, block + name).reshape(
            *shape, -1, self.network.architecture.head_dim) for name in ("query", "key", "value"))
        s = jnp.einsum("bthd,bshd->bhts", self.rope(q), self.rope(k))
        mask = jnp.tril(jnp.ones(s.shape[-2:], bool))
        s = jnp.where(mask, s * self.network.scales.attention, -jnp.inf)
        y = jnp.einsum("bhts,bshd->bthd", self.jax.nn.softmax(s), v)
        return self.dense(y.reshape(x.shape), params, block + "attention_out")

    def forward(self, params, ids, targets):
        """The loss."""
        jax, a = self.jax, self.network.architecture
        x = params["embedding"][ids.reshape(-1)] * self.network.scales.mult["embedding"].y
        for i in range(a.depth):
            block = f"block{i}."
            x = x + self.attention(self.norm(x), params, block, ids.shape)
            hidden = jax.nn.gelu(self.dense(self.norm(x), params, block + "up"), approximate=True)
            x = x + self.dense(hidden, params, block + "down")
        logp = jax.nn.log_softmax(self.dense(self.norm(x), params, "output"))
        return -jax.numpy.take_along_axis(logp, targets.reshape(-1, 1), -1).mean()

    def trained(self, params, moments, t, ids, targets):
        """(loss, parameters, moments) after one step of AdamW; t counts from 1."""
        loss, grads = self.jax.value_and_grad(self.forward)(params, ids, targets)
        (beta1, beta2), new, kept = self.betas, {}, {}
        for row in self.network.rows:
            g, (m, v) = grads[row.name], moments[row.name]
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
            kept[row.name] = m, v
            root = self.jax.numpy.sqrt(v / (1 - beta2**t))
            new[row.name] = params[row.name] - row.lr * (m / (1 - beta1**t)) / (root + row.eps)
        return loss, new, kept

    def batch(self, ids, targets):
        """A batch of NumPy arrays as the step takes it."""
        return self.array(ids.astype("int32")), self.array(targets.astype("int32"))

    def step(self, t, batch):
        """The loss, on the device, after which the parameters are updated."""
        loss, self.params, self.moments = self.train(self.params, self.moments, t + 1.0, *batch)
        return loss

    def product(self, a, b):
        """A function that computes a @ b and returns it. jit allocates the result each time."""
        return functools.partial(self.matmul, self.array(a), self.array(b))

    def wait(self, x):
        """Returns when x is computed."""
        x.block_until_ready()

    @staticmethod
    def release():
        """Drops compiled code, which holds parameters. JAX keeps its pool of GPU memory."""
        import jax
        jax.clear_caches()

    @staticmethod
    def about():
        """Version."""
        import jax
        import jaxlib
        return f"JAX {jax.__version__}, jaxlib {jaxlib.__version__} (XLA's own matrix products)"


RIVALS = {"torch": Torch, "compile": CompiledTorch, "jax": Jax}


def installed():
    """The names of the rivals whose package is installed."""
    return [name for name, rival in RIVALS.items() if importlib.util.find_spec(rival.package)]
