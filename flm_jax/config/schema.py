"""Every configuration key with its default, unit and choices: the base of all `configs/`.

A file in `configs/` takes `base_config()` and sets what differs; `build` refuses unknown keys.
"""

from ml_collections import ConfigDict


def base_config() -> ConfigDict:
    """A complete configuration; sizes of a tiny model."""
    config = ConfigDict()
    config.seed = 0  # root of every random draw: initialisation, data order, noise

    config.model = ConfigDict()
    config.model.name = "dit"  # dit; causal (objective autoregressive alone); llama
    config.model.vocab_size = 0  # tokens; 0 = that of the data's tokenizer
    config.model.length = 64  # tokens per sequence, L
    config.model.dim = 128  # width D
    config.model.depth = 2  # blocks
    config.model.heads = 4  # attention heads; dim / heads must be even
    config.model.cond_dim = 128  # width of the time embedding
    config.model.mlp_ratio = 4  # hidden width of the MLP / dim
    # dit: a learned vector for each position is added to the state, beside rotary positions; for
    # data that lie on a grid.
    config.model.position_table = False
    # dit: the posterior of each token given its own state, in closed form, enters instead of the
    # state (objective denoising and the routes to a flow map)
    config.model.posterior_input = False
    # dit: an estimate of the clean text, the network's own, is added to the state (denoising alone)
    config.model.self_conditioning = False
    config.model.dropout = 0.0  # rate in [0, 1), on both branches of a block
    config.model.two_time = False  # True for flow maps: a second time embedding
    config.model.attention_softcap = 50.0  # cap of attention scores; 0 = none
    config.model.logit_softcap = 30.0  # cap of output logits; 0 = none
    # xla; splash (TPU); fused (GPU); cudnn (GPU, no cap of scores); auto: splash, fused or xla
    config.model.attention = "xla"
    config.model.dtype = "float32"  # compute: float32, bfloat16 (parameters stay float32)
    config.model.remat = "none"  # none, matmuls (keep matrix products), full
    config.model.scan_blocks = False  # True: one compiled block, scanned; False: unrolled
    config.model.loss_tile = 0  # positions per tile of the vocabulary losses; 0 = all at once

    config.model.llama = ConfigDict()  # read by model.name llama alone
    config.model.llama.kv_heads = 0  # heads of keys and values; 0 = as many as heads
    config.model.llama.rope_base = 10_000.0  # base of rotary frequencies
    config.model.llama.rope_condense = 1.0  # positions are divided by it
    config.model.llama.mask_id = -1  # token that masks; -1 = an embedding besides the vocabulary
    config.model.llama.param_dtype = "float32"  # of a base that is not trained, also bfloat16
    config.model.llama.mlp_hidden = 0  # hidden width of the MLP; 0 = mlp_ratio * dim
    config.model.llama.norm_eps = 1e-5  # of all norms, within the root
    config.model.llama.qk_norm = False  # True: a norm on each head's queries and keys
    config.model.llama.rotary_share = 1.0  # part of each head that is rotated, in (0, 1]
    # tokens; each position sees its own block of so many and those before; 0 = sees all
    config.model.llama.block_length = 0

    # A mixture of experts in all but the first blocks (LLaDA2.0).
    config.model.llama.experts = ConfigDict()
    config.model.llama.experts.number = 0  # routed experts of a block; 0 = none, a plain MLP
    config.model.llama.experts.active = 8  # of them for each token
    config.model.llama.experts.hidden = 512  # width inside each expert
    config.model.llama.experts.shared = 1  # experts that every token has, at least 1
    config.model.llama.experts.groups = 1  # of experts, which have to be equally many
    config.model.llama.experts.active_groups = 1  # groups that a token may choose from
    config.model.llama.experts.scale = 1.0  # of the weights, which add up to 1 before
    config.model.llama.experts.dense_blocks = 1  # first blocks that have a plain MLP

    # Adapters of a frozen model.name llama, see objective masked_bridge.
    config.adapters = ConfigDict()
    config.adapters.base = ""  # workdir of the masked diffusion model; "" = no adapters
    config.adapters.start = ""  # workdir whose averaged adapters to start from; "" = fresh ones
    config.adapters.rank = 256  # of LoRA on attention and MLP
    config.adapters.alpha = 512.0  # its scale is alpha / rank
    config.adapters.head_rank = 256  # of LoRA on the head
    config.adapters.head_alpha = 256.0
    config.adapters.dropout = 0.05  # rate in [0, 1), on the input of LoRA in the blocks
    config.adapters.cond_dim = 512  # hidden width of the time embedding

    config.bridge = ConfigDict()  # read by objective masked_bridge alone
    config.bridge.sigma = 0.2  # scale of the bridge's noise
    config.bridge.embedding_weight = 10.0  # of the squared distance of embeddings
    config.bridge.least_share = 0.05  # smallest share of hidden positions
    config.bridge.whole = 0.0  # share of rows hidden entirely, prompts apart
    config.bridge.prompt = 0  # first positions of each sequence, which stay visible
    config.bridge.eos_id = -1  # token left out of an empirical curve; -1 = the tokenizer's EOS
    # gamma = log noise over signal: shares that are uniform and normal; the rest is learnt by
    # "logistic" (a fit to the cross entropy over gamma) or "empirical" (its quantiles).
    config.bridge.uniform = 0.1
    config.bridge.normal = 0.2
    config.bridge.learnt = "logistic"
    config.bridge.bins = 64  # of gamma
    config.bridge.decay = 0.999  # of the averages in the bins, a step
    config.bridge.refit_every = 200  # steps

    config.alignment = ConfigDict()  # read by objective alignment alone
    # What stands at hidden positions: masked (masks), progress (between mask and token, at random),
    # mixed (either), predicted (masks, or the model's own predictions from them, part of the way).
    config.alignment.inputs = "masked"

    config.data = ConfigDict()
    config.data.path = ""  # folder written by prepare_data; or set mixture, or task
    config.data.mixture = ()  # several folders: pairs (folder, weight > 0), one tokenizer
    # Files of questions and answers, see data/chat.py: pairs (file, weight > 0), and the tokenizer
    # (bytes, hf:NAME_OR_FOLDER, or a saved folder); "" = that of config.adapters.base.
    config.data.chat = ()
    config.data.tokenizer = ""
    # Synthetic task, with the model.length it needs: phrases2, phrases4, phrases_shared (2),
    # arithmetic, arithmetic_reversed (12), arithmetic7 (24), sudoku (81), grammar (16),
    # functions (24).
    config.data.task = ""
    config.data.task_size = 100_000  # training sequences of the task
    # Folder that `generate` wrote; with a task, the one whose problems were answered.
    config.data.generated = ""
    config.data.packing = "wrap"  # wrap, stream, pad (see data/packing.py)
    config.data.threads = 1  # reader threads; 0 = read in the loop
    config.data.prefetch = 4  # batches read ahead

    config.objective = ConfigDict()
    # denoising (FLM); routes to a flow map (FMLM): semigroup, lagrangian, eulerian, endpoint;
    # distribution_matching (a flow map whose texts, noised again, have the law of the flow's);
    # baselines: autoregressive (model.name causal), masked (MDLM); masked_bridge
    # (MLFM: adapters of a masked llama, see config.adapters); alignment (a masked model on what it
    # wrote itself, all of objective.teacher or adapters of config.adapters.base)
    config.objective.name = "denoising"
    config.objective.noise = "projected"  # projected, onehot (reference path, [B, L, V])
    config.objective.teacher = ""  # workdir of the FLM to distil; "" = self-distil from data
    config.objective.diagonal = 0.5  # routes: share of rows with t = s
    # routes: calls of a self-conditioned teacher at a state, each with the estimate of the last one
    config.objective.iterations = 2
    config.objective.boundary = 1 / 32  # routes: share of the others with (s, t) = (0, 1)
    config.objective.split = "midpoint"  # semigroup: u in tau, midpoint or uniform
    # tau that times are drawn in, grids laid in and the network told: decoding (error of x_t, as in
    # the paper), embedded (that of E^T x_t, which the network sees), identity (tau = t)
    config.objective.clock = "decoding"
    # denoising: what the network's output is; probabilities (softmax of it), denoiser or velocity
    # (the output itself, a vector of R^V, form mse; ablations alone, see losses/regression.py)
    config.objective.prediction = "probabilities"
    # denoising, and routes off the diagonal: ce, mse (squared distance); default is mse for
    # eulerian and for predictions that are no probabilities, else ce.
    config.objective.form = "default"
    # lagrangian, eulerian: targets that leave the simplex; none (mse only), clip, sparsemax,
    # entmax15; default is none for mse, else sparsemax.
    config.objective.projection = "default"
    config.objective.derivative_bound = 1.0  # eulerian: largest factor of the derivative, > 0
    config.objective.ema_target = False  # routes: targets from the averaged parameters
    # denoising and routes: share of rows in which a random subset of positions is held clean, the
    # flow then being any-order; and (also of masked) first positions of each sequence that are
    # always clean.
    config.objective.context = 0.0
    config.objective.prompt = 0
    # denoising and routes: weights of the times in the loss, equal or learned.
    config.objective.weighting = "equal"
    # distribution_matching: workdir or folder of a flow, or of a flow map, from which the student
    # starts; "" = the teacher. The auxiliary denoiser starts from the teacher.
    config.objective.start = ""
    # distribution_matching: updates of the auxiliary before each one of the student, at least 1;
    # every update, the student's too, has its own equal part of train.batch.
    config.objective.auxiliary_updates = 4
    # distribution_matching: peak learning rate of the auxiliary; 0 = that of optim.lr
    config.objective.auxiliary_lr = 0.0
    # distribution_matching: first steps, in which the auxiliary alone is trained
    config.objective.auxiliary_lead = 0
    # distribution_matching: share of rows whose student reads pure noise (s = 0); the others' s is
    # uniform in the clock.
    config.objective.from_noise = 0.0
    # distribution_matching: kl (each row by the gradient of its divergence, (t/(1-t))^2), distance
    # (each over the mean distance between student and teacher, so that all count alike)
    config.objective.row_weighting = "kl"
    config.objective.time_conditioning = False  # masked: tell the network the share of masks

    config.optim = ConfigDict()
    config.optim.name = "adamw"  # adamw, or muon: orthogonalised steps for the blocks' matrices
    config.optim.lr = 3e-4  # peak learning rate
    config.optim.warmup_steps = 100  # linear from 0
    config.optim.schedule = "constant"  # after warm-up: constant, cosine (to 10% at the last step)
    config.optim.b1 = 0.9
    config.optim.b2 = 0.999
    config.optim.eps = 1e-8
    config.optim.weight_decay = 0.0  # on matrices only
    config.optim.clip_norm = 1.0  # global gradient norm; 0 = no clipping
    config.optim.ema_decay = 0.9999  # of the averaged parameters that sampling uses

    config.train = ConfigDict()
    config.train.steps = 1000  # optimizer steps in all
    # of training in all, with opening data and compilation, after which a run ends before
    # train.steps; cosine then falls with the time as well; 0 = no limit
    config.train.seconds = 0.0
    config.train.batch = 64  # sequences per step, over all devices
    config.train.microbatches = 1  # gradient accumulation: parts of the batch taken in turn
    config.train.log_every = 50  # steps between progress lines
    config.train.checkpoint_every = 500  # steps between checkpoints
    config.train.keep_checkpoints = 2  # newest ones kept
    config.train.max_skipped = 20  # consecutive non-finite steps before the run stops
    config.train.watchdog_seconds = 600.0  # without a step before a stall is reported; 0 = never

    config.eval = ConfigDict()
    config.eval.every = 500  # steps between evaluations; 0 = at the end only
    config.eval.batches = 4  # validation batches of train.batch sequences; 0 = no loss
    config.eval.tau_bins = 8  # bins of the clock in which the loss is reported
    # texts written at each evaluation; with no eval.batches and none of these there is none
    config.eval.samples = 4
    config.eval.sample_steps = 16  # network calls of those samples

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices over which the batch alone is split; -1 = all the rest
    config.mesh.fsdp = 1  # devices over which batch and parameters are split
    config.mesh.tensor = 1  # devices over which heads, MLP and vocabulary are split
    config.mesh.slices = 1  # TPU slices (groups with fast links); the data axis spans them
    return config


def policy_config() -> ConfigDict:
    """A complete configuration of `train_policy`: every key with its default."""
    config = ConfigDict()
    config.seed = 0  # root of every random draw: initialisation, prompts, rollouts
    config.model = ""  # workdir of the masked diffusion model that is decoded; it stays as it is
    config.calls = (4,)  # network calls of a rollout; several take turns
    config.block_length = 0  # tokens of a block, see sample --block_length
    # Of an answer, 0 or 1: exact_match; unit_tests (task functions); length_free (right however
    # long it is written, see flm_jax/training/task_rewards.py).
    config.reward = "exact_match"
    config.prompts = 2000  # problems of the model's task; those it solves in full are kept
    config.prompt_batch = 8  # prompts of a step
    config.group = 8  # answers to each
    config.completion = 0.1  # lambda, reward for the progress that a token reached
    config.clip = 0.2  # eps of the ratio of probabilities
    config.epochs = 1  # updates on each batch of rollouts

    config.policy = ConfigDict()
    config.policy.hidden = 64  # width of the MLP
    config.policy.least_step = 1 / 256  # smallest step size a
    config.policy.most_step = 1.0  # largest
    config.policy.least_concentration = 2.0  # of the Beta law
    config.policy.most_concentration = 50.0
    config.policy.start = 0.5  # step size of a fresh policy

    config.optim = base_config().optim  # as of `train`, but for these
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 10
    config.optim.ema_decay = 0.98

    config.train = ConfigDict()
    config.train.steps = 300  # batches of rollouts
    config.train.log_every = 10
    config.train.checkpoint_every = 100
    config.train.keep_checkpoints = 2  # the newest ones
    config.train.max_skipped = 10  # steps in a row with a non-finite gradient before it stops
    config.train.watchdog_seconds = 600.0  # a step longer than this is reported; 0 = never

    config.mesh = base_config().mesh  # as of `train`; the policy is replicated, answers are split
    return config
