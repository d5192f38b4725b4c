"""Slow, plain numpy oracles for dynamic discrete choice (DDC) models.

Second implementation used only for testing.  Everything is dense, float64, and
written for obviousness rather than speed.

A model is a dict with
    x          (S, J, K)  features
    offset     (S, J)     known utility
    F          (S, J, S)  transition probabilities F[s, j, t] = Pr(t | s, j)
    beta       float      discount factor in [0, 1)
    available  (S, J)     bool
    attention  (S,)       a(s) in (0, 1]
    default    (S,)       int code of the default choice
    params     (K,)       the parameters used by random_model (the 'truth')

u(s,j) = offset + x @ params, -inf where unavailable
v(s,j) = u(s,j) + beta * sum_t F[s,j,t] V(t)
pi     = softmax_j v over available choices
V(s)   = a(s) logsumexp_j v(s,j) + (1 - a(s)) v(s, default(s))
P(j|s) = a(s) pi(j|s) + (1 - a(s)) 1{j = default(s)}

Shocks are type-1 extreme value, scale 1, shifted to mean zero, so no Euler
constant appears anywhere.

Derivatives: two separate routes are used on purpose.
  (a) 'fd': five-point central differences of log P, each point re-solved.
  (b) 'cs': complex step, Im f(params + i h e_k) / h, h = 1e-20, exact to rounding.
"""

import itertools

import numpy as np
import scipy.optimize

CS = 1e-20  # complex step
EULER = 0.57721566490153286


# ---------------------------------------------------------------- models


def random_distribution(rng, S, sparse, s):
    """(S,) random probabilities; sparse keeps <= 4 targets, always incl. s+1 mod S."""
    p = rng.gamma(1.0, size=S) + 1e-3
    if sparse:
        keep = np.zeros(S, dtype=bool)
        keep[rng.choice(S, size=min(3, S), replace=False)] = True
        keep[(s + 1) % S] = True
        p = np.where(keep, p, 0.0)
    return p / p.sum()


def random_model(seed, S, J, K, beta, masks=True, attention=True, sparse=False):
    """Random model dict.  >= 2 available choices per state, default available,
    every row of F (also of unavailable choices) a distribution; attention=False -> a = 1."""
    if J < 2:
        raise ValueError("J must be at least 2")
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(S, J, K))
    offset = 0.5 * rng.normal(size=(S, J))
    params = 0.7 * rng.normal(size=K)
    F = np.empty((S, J, S))
    available = np.ones((S, J), dtype=bool)
    default = np.empty(S, dtype=np.int64)
    for s in range(S):
        for j in range(J):
            F[s, j] = random_distribution(rng, S, sparse, s)
        if masks:
            keep = rng.choice(J, size=rng.integers(2, J + 1), replace=False)
            available[s] = False
            available[s, keep] = True
        default[s] = rng.choice(np.flatnonzero(available[s]))
    a = np.ones(S)
    if attention:
        a = rng.uniform(0.3, 1.0, size=S)
        a[rng.integers(S)] = 1.0
    return {
        "x": x,
        "offset": offset,
        "F": F,
        "beta": float(beta),
        "available": available,
        "attention": a,
        "default": default,
        "params": params,
    }


# ---------------------------------------------------------------- operator


def flow_utility(model, params):
    """u (S,J) = offset + x @ params, -inf where unavailable.  params may be complex."""
    u = model["offset"] + model["x"] @ np.asarray(params)
    return np.where(model["available"], u, -np.inf)


def softmax_lse(v, available):
    """v (S,J) -> (pi (S,J), lse (S,)) over available choices only."""
    top = np.max(np.where(available, v.real, -np.inf), axis=1)
    e = np.where(available, np.exp(np.where(available, v - top[:, None], 0.0)), 0.0)
    total = e.sum(axis=1)
    return e / total[:, None], top + np.log(total)


def mix(model, v):
    """v (S,J) -> (TV (S,), pi (S,J), P (S,J)): V = a lse + (1-a) v_default,
    P = a pi + (1-a) 1{j = default}."""
    a, d = model["attention"], model["default"]
    rows = np.arange(len(a))
    pi, lse = softmax_lse(v, model["available"])
    P = a[:, None] * pi
    P[rows, d] += 1.0 - a
    return a * lse + (1.0 - a) * v[rows, d], pi, P


def bellman(model, params, V):
    """One application of the operator: V (S,) -> (TV (S,), v (S,J), pi (S,J), P (S,J))."""
    v = flow_utility(model, params) + model["beta"] * (model["F"] @ V)
    v = np.where(model["available"], v, -np.inf)
    TV, pi, P = mix(model, v)
    return TV, v, pi, P


def residual(model, params, V):
    """max_s |TV - V|."""
    return float(np.max(np.abs(bellman(model, params, V)[0] - V)))


# ---------------------------------------------------------------- solvers


def solve_contraction(model, params, steps=50_000, tol=0.0, V0=None):
    """Repeat V <- TV from V0 (zero) until max|TV - V| <= tol or `steps` is reached.

    Returns (V, v, pi, P).  The level error left is about beta**steps times the
    starting error: at beta = .9999, 50_000 steps leave a factor e^-5 on the level
    of V (differences of V, v and P are long converged); use 400_000 for the level.
    """
    V = np.zeros(len(model["attention"])) if V0 is None else np.array(V0, dtype=float)
    for _ in range(steps):
        TV = bellman(model, params, V)[0]
        change = np.max(np.abs(TV - V))
        V = TV
        if change <= tol:
            break
    _, v, pi, P = bellman(model, params, V)
    return V, v, pi, P


def contract_while_halving(model, params, limit):
    """(S,) w <- T(w) - T(w)[0] from zero, up to `limit` times, the first time for certain and
    then as long as max|T(w) - w - (T(w) - w)[0]| is at most half of what it was before."""
    w, before = np.zeros(len(model["attention"])), np.inf
    for _ in range(limit):
        gap = bellman(model, params, w)[0] - w
        size = np.max(np.abs(gap - gap[0]))
        if size > 0.5 * before or size <= 1e-12 * (1 + np.max(np.abs(w))):
            break
        before = size
        w = w + gap - (w + gap)[0]
    return w


def markov(P, F):
    """(S,S) chain under P: M[s,t] = sum_j P[s,j] F[s,j,t].  Also dT/dV = beta M."""
    return np.einsum("sj,sjt->st", P, F)


def newton_step_level(model, params, V):
    """V - (I - beta M)^-1 (V - TV)."""
    TV, _, _, P = bellman(model, params, V)
    A = np.eye(len(V)) - model["beta"] * markov(P, model["F"])
    return V + np.linalg.solve(A, TV - V)


def newton_step_relative(model, params, w, g):
    """Newton for w + g 1 = T(w) with w[0] = 0; the same steps as on V = w + g/(1-beta),
    since T(w + k 1) = T(w) + beta k when rows of F sum to one.  Bordered system
        [I - beta M   1] [dw]   [T(w) - w - g]
        [e_0'         0] [dg] = [0           ]
    Returns (w, g, size of the right-hand side)."""
    S = len(w)
    Tw, _, _, P = bellman(model, params, w)
    A = np.zeros((S + 1, S + 1), dtype=np.result_type(P))
    A[:S, :S] = np.eye(S) - model["beta"] * markov(P, model["F"])
    A[:S, S] = 1.0
    A[S, 0] = 1.0
    rhs = np.append(Tw - w - g, 0.0)
    step = np.linalg.solve(A, rhs)
    w = w + step[:S]
    w[0] = 0.0
    return w, g + step[S], float(np.max(np.abs(rhs)))


def rows_sum_to_one(model):
    """True when every available row of F sums to one (to 1e-12)."""
    gap = np.abs(model["F"].sum(axis=2) - 1.0)
    return bool(np.all(gap[model["available"]] <= 1e-12))


def newton_relative(model, params, max_steps=60):
    """(w (S,), g): V = w + g/(1-beta).  Newton until the residual stops falling.
    With complex params: solve at the real part, then three complex Newton steps."""
    params = np.asarray(params)
    S = len(model["attention"])
    if np.iscomplexobj(params):
        w, g = newton_relative(model, params.real)
        for _ in range(3):
            w, g, _ = newton_step_relative(model, params, w, g)
        return w, g
    w, g, small = np.zeros(S), 0.0, 0
    for _ in range(max_steps):
        w, g, size = newton_step_relative(model, params, w, g)
        small = small + 1 if size <= 1e-12 * (1.0 + np.max(np.abs(w)) + abs(g)) else 0
        if small == 2:
            return w, g
    raise RuntimeError(f"newton did not converge, residual {size:g}")


def newton_level(model, params, max_steps=60):
    """V (S,) by plain Newton on V; used only when rows of F do not sum to one."""
    params = np.asarray(params)
    V = np.zeros(len(model["attention"]))
    if np.iscomplexobj(params):
        V, max_steps = newton_level(model, params.real), 3
    for _ in range(max_steps):
        new = newton_step_level(model, params, V)
        if not np.iscomplexobj(params) and np.max(np.abs(new - V)) <= 1e-12 * (
            1 + np.max(np.abs(V))
        ):
            return newton_step_level(model, params, new)
        V = new
    if np.iscomplexobj(params):
        return V
    raise RuntimeError("newton did not converge")


def solve_newton(model, params):
    """Dense policy iteration / Newton.  Returns (V, v, pi, P).

    v, pi, P come from the relative values w = V - V[0], so that P keeps full
    precision when beta is near 1 and the level of V is large."""
    if not rows_sum_to_one(model):
        V = newton_level(model, params)
        _, v, pi, P = bellman(model, params, V)
        return V, v, pi, P
    w, g = newton_relative(model, params)
    level = g / (1.0 - model["beta"])
    _, v, pi, P = bellman(model, params, w)
    v = np.where(model["available"], v + model["beta"] * level, -np.inf)
    return w + level, v, pi, P


def solve_finite(model, params, T):
    """Backward induction, V_T = 0.  Returns (V (T+1,S), v (T,S,J), P (T,S,J))."""
    S, J = model["offset"].shape
    dtype = np.result_type(np.asarray(params), float)
    V = np.zeros((T + 1, S), dtype=dtype)
    v = np.zeros((T, S, J), dtype=dtype)
    P = np.zeros((T, S, J), dtype=dtype)
    for t in range(T - 1, -1, -1):
        V[t], v[t], _, P[t] = bellman(model, params, V[t + 1])
    return V, v, P


# ---------------------------------------------------------------- likelihood


def weighted_log(n, P):
    """sum over cells with n != 0 of n log P (any matching shapes)."""
    n = np.asarray(n, dtype=float)
    use = n != 0
    with np.errstate(divide="ignore"):
        return np.sum(n[use] * np.log(P[use]))


def loglik(model, params, n_sj):
    """sum_sj n log P(j|s), infinite horizon."""
    return weighted_log(n_sj, solve_newton(model, params)[3])


def loglik_finite(model, params, n_tsj):
    """sum_tsj n log P_t(j|s), horizon T = n_tsj.shape[0]."""
    n_tsj = np.asarray(n_tsj)
    return weighted_log(n_tsj, solve_finite(model, params, n_tsj.shape[0])[2])


# ---------------------------------------------------------------- derivatives


def steps_for(model, step):
    """(K,) step sizes: step / max(1, max |x_k|)."""
    return step / np.maximum(1.0, np.max(np.abs(model["x"]), axis=(0, 1)))


def central5(f, params, k, h):
    """Five-point central difference of f in parameter k:
    (8 (f(+h) - f(-h)) - (f(+2h) - f(-2h))) / (12 h)."""

    def at(m):
        p = np.array(params, dtype=float)
        p[k] += m * h
        return f(p)

    return (8.0 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12.0 * h)


def log_P(model, params):
    """(S,J) log P(j|s); 0 at unavailable cells (where P = 0) so they never matter."""
    P = solve_newton(model, params)[3]
    return np.log(np.where(model["available"], P, 1.0))


def scores_fd(model, params, cells=None, step=2e-3):
    """(S,J,K) d log P(j|s) / d params_k by five-point central differences.

    cells: None (all available cells) or an (S,J) mask or count array; zero outside
    the cells and at unavailable choices."""
    use = model["available"] if cells is None else (np.asarray(cells) != 0) & model["available"]
    h = steps_for(model, step)
    out = np.zeros(model["x"].shape)
    for k in range(out.shape[2]):
        d = central5(lambda p: log_P(model, p), params, k, h[k])
        out[:, :, k] = np.where(use, d, 0.0)
    return out


def scores_cs(model, params):
    """(S,J,K) d log P / d params by complex step; zero at unavailable cells."""
    out = np.zeros(model["x"].shape)
    for k in range(out.shape[2]):
        p = np.array(params, dtype=complex)
        p[k] += 1j * CS
        out[:, :, k] = log_P(model, p).imag / CS
    return out


def gradient(model, params, n_sj):
    """(K,) gradient of loglik: sum_sj n * score (complex-step scores)."""
    return np.einsum("sj,sjk->k", np.asarray(n_sj, dtype=float), scores_cs(model, params))


def cell_hessians(model, params, step=2e-3):
    """(S,J,K,K) second derivatives of log P(j|s): central differences of the
    complex-step scores, symmetrised."""
    K = model["x"].shape[2]
    h = steps_for(model, step)
    out = np.zeros(model["x"].shape + (K,))
    for k in range(K):
        out[..., k] = central5(lambda p: scores_cs(model, p), params, k, h[k])
    return 0.5 * (out + np.swapaxes(out, 2, 3))


def hessian_fd(model, params, n_sj, step=2e-3):
    """(K,K) second derivatives of loglik = sum_sj n * cell_hessians (negative definite at the mle)."""
    return np.einsum(
        "sj,sjkl->kl", np.asarray(n_sj, dtype=float), cell_hessians(model, params, step)
    )


def mle(model, n_sj, start, tol=1e-10):
    """Maximise loglik.  BFGS with the complex-step gradient, then Newton polishing
    until max |gradient of the mean log-likelihood| < tol.
    Returns (params, loglik, hessian): hessian (K,K) of the SUM log-likelihood, not negated."""
    n = np.asarray(n_sj, dtype=float)
    total = n.sum()
    fit = scipy.optimize.minimize(
        lambda p: -loglik(model, p, n) / total,
        np.array(start, dtype=float),
        jac=lambda p: -gradient(model, p, n) / total,
        method="BFGS",
        options={"gtol": 1e-6, "maxiter": 500},
    )
    p = fit.x
    for _ in range(20):
        g = gradient(model, p, n)
        H = hessian_fd(model, p, n)
        if np.max(np.abs(g)) / total < tol:
            if np.max(np.linalg.eigvalsh(H)) >= 0:
                raise RuntimeError("stationary point is not a strict maximum")
            return p, float(loglik(model, p, n)), H
        p = p - np.linalg.solve(H, g)
    raise RuntimeError("mle did not reach the gradient tolerance: %g" % (np.max(np.abs(g)) / total))


# ---------------------------------------------------------------- data


def draw_rows(rng, probs):
    """One index per row from probs (N,S), by inverse cdf."""
    u = rng.random(len(probs))
    return np.minimum((u[:, None] >= np.cumsum(probs, axis=1)).sum(axis=1), probs.shape[1] - 1)


def start_states(rng, start, members, S):
    """(members,) states: start None = uniform, float (S,) = distribution, int (members,) = given."""
    if start is None:
        return rng.integers(S, size=members)
    start = np.asarray(start)
    if np.issubdtype(start.dtype, np.integer):
        return start.copy()
    return rng.choice(S, size=members, p=start)


def simulate(model, params, members, periods, seed, start=None):
    """Simulate the infinite-horizon policy from its shocks (not from P): attentive with
    probability a(s) -> argmax_j v + Gumbel; otherwise the default.

    start: None uniform; float (S,) distribution; int (members,) states.
    Returns flat arrays (member, period, state, choice, next_state), each
    (members*periods,), sorted by member then period."""
    rng = np.random.default_rng(seed)
    S, J = model["offset"].shape
    v = solve_newton(model, params)[1]
    s = start_states(rng, start, members, S)
    state, choice, nxt = (np.empty((periods, members), dtype=np.int64) for _ in range(3))
    for t in range(periods):
        best = np.argmax(v[s] + rng.gumbel(size=(members, J)), axis=1)
        attentive = rng.random(members) < model["attention"][s]
        c = np.where(attentive, best, model["default"][s])
        state[t], choice[t] = s, c
        s = draw_rows(rng, model["F"][s, c])
        nxt[t] = s
    member = np.repeat(np.arange(members), periods)
    period = np.tile(np.arange(periods), members)
    return member, period, state.T.ravel(), choice.T.ravel(), nxt.T.ravel()


def counts(states, choices, S, J):
    """(S,J) int counts of (state, choice) rows, one row at a time."""
    n = np.zeros((S, J), dtype=np.int64)
    for s, j in zip(states, choices, strict=False):
        n[s, j] += 1
    return n


def stationary(F, P):
    """mu (S,): mu = mu M, sum mu = 1, M = sum_j P_j F_j (one recurrent class assumed)."""
    M = markov(P, F)
    S = len(M)
    A = np.vstack([(np.eye(S) - M).T, np.ones((1, S))])
    b = np.append(np.zeros(S), 1.0)
    return np.linalg.lstsq(A, b, rcond=None)[0]


def push_forward(model, P, F, mu, periods):
    """mu_{t+1}(s') = sum_sj mu_t(s) P(j|s) F[s,j,s'];  share_t(j) = sum_s mu_t(s) P(j|s).

    P (S,J) or (periods,S,J); F None -> model['F'].
    Returns (mu (periods+1,S), shares (periods,J))."""
    F = model["F"] if F is None else F
    S, J = model["offset"].shape
    path, shares = np.zeros((periods + 1, S)), np.zeros((periods, J))
    path[0] = mu
    for t in range(periods):
        Pt = P if np.ndim(P) == 2 else P[t]
        joint = path[t][:, None] * Pt
        shares[t] = joint.sum(axis=0)
        path[t + 1] = np.einsum("sj,sjt->t", joint, F)
    return path, shares


# ---------------------------------------------------------------- covariances, row by row


def expand(n_sj):
    """Integer counts (S,J) -> row arrays (state, choice)."""
    n = np.asarray(n_sj)
    if not np.all(n == np.round(n)) or np.any(n < 0):
        raise ValueError("row-level loops need non-negative integer counts")
    s, j = np.nonzero(n)
    rep = n[s, j].astype(np.int64)
    return np.repeat(s, rep), np.repeat(j, rep)


def information(model, params, state, choice):
    """H (K,K) = -sum over rows of the second derivatives of log P."""
    second = cell_hessians(model, params)
    H = np.zeros(second.shape[2:])
    for s, j in zip(state, choice, strict=False):
        H -= second[s, j]
    return H


def outer_products(model, params, state, choice):
    """B (K,K) = sum over rows of score score'."""
    score = scores_cs(model, params)
    B = np.zeros((score.shape[2],) * 2)
    for s, j in zip(state, choice, strict=False):
        B += np.outer(score[s, j], score[s, j])
    return B


def member_scores(model, params, member, state, choice, N):
    """g (N,K): row scores summed within member; member codes 0..N-1."""
    score = scores_cs(model, params)
    g = np.zeros((N, score.shape[2]))
    for i, s, j in zip(member, state, choice, strict=False):
        g[i] += score[s, j]
    return g


def cov_hessian(model, params, n_sj):
    """H^-1."""
    return np.linalg.inv(information(model, params, *expand(n_sj)))


def cov_opg(model, params, n_sj):
    """B^-1."""
    return np.linalg.inv(outer_products(model, params, *expand(n_sj)))


def cov_robust(model, params, n_sj):
    """H^-1 B H^-1."""
    Hi = cov_hessian(model, params, n_sj)
    return Hi @ outer_products(model, params, *expand(n_sj)) @ Hi


def cov_clustered(model, params, member, state, choice):
    """H^-1 (sum_i g_i g_i') H^-1; no small-sample factor.  member: any labels."""
    labels, code = np.unique(member, return_inverse=True)
    g = member_scores(model, params, code, state, choice, len(labels))
    meat = np.zeros((g.shape[1],) * 2)
    for row in g:
        meat += np.outer(row, row)
    Hi = np.linalg.inv(information(model, params, state, choice))
    return Hi @ meat @ Hi


def score_gamma_jacobian(build, gamma, params, n_sj, step=1e-4):
    """C (K,G) = d(sum score)/d gamma: five-point differences of the MEAN score
    (each point rebuilds and re-solves the model), times the number of rows."""
    gamma = np.array(gamma, dtype=float)
    total = float(np.sum(n_sj))
    C = np.zeros((len(params), len(gamma)))
    for m in range(len(gamma)):
        C[:, m] = total * central5(
            lambda q: gradient(build(q), params, n_sj) / total, gamma, m, step
        )
    return C


def twostep_influence(build, gamma, params, member, state, choice, influence, step=1e-4):
    """IF (N,K): IF_i = H^-1 (g_i + C IF_gamma_i), theta_hat - theta ~ sum_i IF_i.

    member: codes 0..N-1 (a member may have no rows); influence (N,G) in the same
    SUM convention, gamma_hat - gamma ~ sum_i influence_i (not the mean)."""
    influence = np.asarray(influence, dtype=float)
    model = build(np.array(gamma, dtype=float))
    n = counts(state, choice, *model["offset"].shape)
    H = information(model, params, state, choice)
    g = member_scores(model, params, member, state, choice, len(influence))
    C = score_gamma_jacobian(build, gamma, params, n, step)
    out = np.zeros_like(g)
    for i in range(len(g)):
        out[i] = np.linalg.solve(H, g[i] + C @ influence[i])
    return out


def twostep_cov(build, gamma, params, member, state, choice, influence, step=1e-4):
    """(K,K) sum_i IF_i IF_i' with IF from twostep_influence (clustered two-step covariance)."""
    IF = twostep_influence(build, gamma, params, member, state, choice, influence, step)
    cov = np.zeros((IF.shape[1],) * 2)
    for row in IF:
        cov += np.outer(row, row)
    return cov


# ---------------------------------------------------------------- CCP valuation


def hotz_miller(model, ccp):
    """ccp (S,J) -> (Wz (S,K), We (S,)), V = Wz @ params + We, full attention only:
    V = (I - beta M)^-1 sum_j P_j (x_j params + offset_j - log P_j), 0 log 0 = 0."""
    if not np.all(model["attention"] == 1.0):
        raise ValueError("hotz_miller needs attention = 1")
    P = np.asarray(ccp, dtype=float)
    A = np.eye(len(P)) - model["beta"] * markov(P, model["F"])
    z = np.einsum("sj,sjk->sk", P, model["x"])
    e = np.zeros(len(P))
    for s in range(P.shape[0]):
        for j in range(P.shape[1]):
            if P[s, j] > 0:
                e[s] += P[s, j] * (model["offset"][s, j] - np.log(P[s, j]))
    return np.linalg.solve(A, z), np.linalg.solve(A, e)


# ---------------------------------------------------------------- factored states


def factored_dense(shape, laws, J):
    """F (S,J,S), S = prod(shape), last axis fastest, by enumeration:
    F[s,j,t] = prod_axis laws[axis](axis, next_level, own_level, levels_tuple, j),
    levels_tuple = all current levels of s."""
    cells = list(itertools.product(*[range(m) for m in shape]))
    F = np.zeros((len(cells), J, len(cells)))
    for s, now in enumerate(cells):
        for j in range(J):
            for t, nxt in enumerate(cells):
                p = 1.0
                for axis in range(len(shape)):
                    p *= laws[axis](axis, nxt[axis], now[axis], now, j)
                F[s, j, t] = p
    return F


def unmix(model, P):
    """(S,J) attentive probabilities pi from observed P = a pi + (1-a) 1{default}."""
    pi = np.array(P, dtype=float)
    for s in range(len(pi)):
        pi[s, model["default"][s]] -= 1.0 - model["attention"][s]
        pi[s] /= model["attention"][s]
    return pi


def policy_values(model, ccp):
    """ccp (S,J) -> (Wz (S,K), We (S,)) of following it, inattention included:
    V = (I - beta M)^-1 sum_j P_j (x_j params + offset_j) - a sum_j pi_j log pi_j."""
    pi = unmix(model, ccp)
    flow, e = np.zeros((len(pi), model["x"].shape[2])), np.zeros(len(pi))
    for s, j in itertools.product(*map(range, pi.shape)):
        if model["available"][s, j]:
            flow[s] += ccp[s, j] * model["x"][s, j]
            e[s] += ccp[s, j] * model["offset"][s, j]
            e[s] -= model["attention"][s] * pi[s, j] * np.log(pi[s, j])
    A = np.eye(len(pi)) - model["beta"] * markov(ccp, model["F"])
    return np.linalg.solve(A, flow), np.linalg.solve(A, e)


# ---------------------------------------------------------------- finite dependence


def dependence_index(model, params, P, s, j, k, weights):
    """v_j - v_k in state s from flows and choice probabilities over the next periods.

    weights: list of (S,J) arrays d_1, d_2 ...; P (S,J), or a list of them by period ahead
    (a period past the horizon is None: its term is zero)."""
    u = flow_utility(model, params)
    out = u[s, j] - u[s, k]
    for ahead, d in enumerate(weights, start=1):
        now = P[ahead] if isinstance(P, list) else P
        if now is None:
            continue
        pi = unmix(model, now)
        for t, a in np.argwhere(d != 0):
            psi = -np.log(pi[t, a])
            psi += (1 - model["attention"][t]) * np.log(pi[t, model["default"][t]])
            out += model["beta"] ** ahead * d[t, a] * (u[t, a] + psi)
    return out


def dependence_exists(model, s, j, k, periods):
    """Whether weights over `periods` periods bring the paths of j and k from s together.

    Unknowns are weights on (state, choice) that either path can reach; the linear system has
    a solution where appending the right-hand side does not raise the rank."""
    F, available = model["F"], model["available"]
    change = F[s, j] - F[s, k]
    reach = (F[s, j] > 0) | (F[s, k] > 0)
    S, columns = len(F), []
    for d in range(periods):
        after = np.zeros(S, dtype=bool)
        for t, a in itertools.product(np.flatnonzero(reach), range(F.shape[1])):
            if available[t, a]:
                column = np.zeros((periods + 1) * S)
                column[d * S + t] = 1.0
                column[(d + 1) * S : (d + 2) * S] = -F[t, a]
                columns.append(column)
                after |= F[t, a] > 0
        reach = after
    A = np.stack(columns, axis=1)
    b = np.r_[change, np.zeros(periods * S)]
    return np.linalg.matrix_rank(np.c_[A, b], tol=1e-9) == np.linalg.matrix_rank(A, tol=1e-9)


# ---------------------------------------------------------------- simulated paths


def path_values(start, P, F, draws, flows, beta):
    """(states, K) discounted flows of one path from every start state; P (S,J), F (S,J,S)."""
    out = np.zeros((len(start), flows.shape[1]))
    for i, s in enumerate(start):
        for t, (u_choice, u_move) in enumerate(draws):
            out[i] += beta**t * flows[s]
            j = int(np.searchsorted(np.cumsum(P[s]), u_choice, side="right"))
            s = int(np.searchsorted(np.cumsum(F[s, j]), u_move, side="right"))
    return out


# ---------------------------------------------------------------- mixtures of types


def type_tables(model, params_by_type, T=None):
    """P(j|s) of every type, (S,J) each, or by period (T,S,J) at a finite horizon."""
    if T is None:
        return [solve_newton(model, params)[3] for params in params_by_type]
    return [solve_finite(model, params, T)[2] for params in params_by_type]


def history_logs(tables, member, where):
    """(N,Q) log-likelihood of each member's rows were it of type q; member codes 0..N-1,
    where: index arrays of the rows, (state, choice) or (period, state, choice)."""
    rows = np.stack([P[where] for P in tables], axis=1)
    out = np.zeros((int(np.max(member)) + 1, len(tables)), dtype=rows.dtype)
    np.add.at(out, member, np.log(rows))
    return out


def share_logit(phi, gamma):
    """(N,Q) shares: type 0 has index 0, type q index phi @ gamma[q-1]."""
    index = np.concatenate([np.zeros((len(phi), 1)), phi @ np.asarray(gamma).T], axis=1)
    e = np.exp(index)
    return e / e.sum(axis=1, keepdims=True)


def mixture(logs, shares):
    """(N,) log sum_q share_q L_q, and (N,Q) the posteriors."""
    joint = logs + np.log(shares)
    top = joint.real.max(axis=1, keepdims=True)
    e = np.exp(joint - top)
    return top[:, 0] + np.log(e.sum(axis=1)), e / e.sum(axis=1, keepdims=True)


def complex_gradient(f, theta):
    """(P,) gradient of f at a flat vector by complex step."""
    steps = 1j * CS * np.eye(len(theta))
    return np.array([f(theta + h).imag for h in steps]) / CS


def complex_hessian(f, theta, step=2e-3):
    """(P,P) second derivatives: central differences of complex-step gradients."""
    columns = [
        central5(lambda p: complex_gradient(f, p), theta, k, step) for k in range(len(theta))
    ]
    out = np.stack(columns, axis=1)
    return 0.5 * (out + out.T)


def bucket_of(ids: np.ndarray, buckets: int) -> np.ndarray:
    """The bucket of integer ids: a cubic polynomial modulo a prime, in plain integers."""
    prime = 1_048_573
    out = []
    for i in np.asarray(ids).tolist():
        x = (i % prime + (i // prime) % 7919) % prime
        square = x * x % prime
        out.append(((square * x % prime + 48_271 * square + 69_621 * x + 12_345) % prime) % buckets)
    return np.array(out)


# ---------------------------------------------------------------- blocks of factored laws
#
# A law is a dict: axes (neighbouring axis positions it moves), given (tuple of "choice" and axis
# positions), kind ("fixed", "deterministic", "markov"), table: indexed by the given levels in
# their order and the own level (ravelled over its axes), then the next level for "markov"; a
# deterministic table holds the next level, or None where a choice cannot be made.


def random_rows(rng, rows, n):
    """(rows, n, n) random probabilities; rows of one, two or more next levels."""
    p = rng.gamma(1.0, size=(rows, n, n)) + 0.05
    for r, i in itertools.product(range(rows), range(n)):
        keep = rng.choice(n, size=rng.integers(1, n + 1), replace=False)
        p[r, i, np.setdiff1d(np.arange(n), keep)] = 0.0
    return p / p.sum(axis=2, keepdims=True)


def random_factored(seed, J, free=False, limit=150):
    """(shape, laws): 2-4 axes of 2-5 levels, at most `limit` states, every axis with one law.

    Parents are drawn from axes earlier in a random order, hence on both sides of the own axis and
    without cycles; free: the last one has none, nor is it one.  Some neighbouring axes share a
    law, some axes are Fixed, some choices move the same way."""
    rng = np.random.default_rng(seed)
    shape = None
    while shape is None or np.prod(shape) > limit:
        shape = tuple(int(n) for n in rng.integers(2, 6, size=rng.integers(2, 5)))
    moved = [(a,) for a in range(len(shape))]
    if rng.random() < 0.3 and len(shape) > 2:
        a = int(rng.integers(len(shape) - 1))
        moved[a : a + 2] = [(a, a + 1)]
    order = [moved[i] for i in rng.permutation(len(moved))]
    fixed = int(rng.integers(0, min(3, len(order))))
    laws = []
    for place, axes in enumerate(order):
        n = int(np.prod([shape[a] for a in axes]))
        if place < fixed:
            laws.append({"axes": axes, "given": (), "kind": "fixed", "table": None})
            continue
        parents = [a for block in order[:place] for a in block if rng.random() < 0.6]
        parents = [] if free and place == len(order) - 1 else parents
        given = ["choice"] * bool(rng.random() < 0.65) + parents
        given = tuple(given[i] for i in rng.permutation(len(given)))
        dims = tuple(J if g == "choice" else shape[g] for g in given)
        rows = int(np.prod(dims))
        kind = "deterministic" if rng.random() < 0.35 else "markov"
        if kind == "markov":
            table = random_rows(rng, rows, n).reshape(*dims, n, n)
        else:
            table = rng.integers(0, n, size=(*dims, n)).astype(object)
        if "choice" in given:
            by = np.moveaxis(table, given.index("choice"), 0)
            for j in range(1, J):
                same = rng.random(by.shape[1]) < rng.choice([0.0, 0.5, 1.0])
                by[j][same] = by[j - 1][same]
            if kind == "deterministic":
                for at in np.ndindex(by.shape):
                    if at[0] > 0 and rng.random() < 0.1:
                        by[at] = None
        laws.append({"axes": axes, "given": given, "kind": kind, "table": table})
    return shape, laws


def law_place(shape, law, j, now):
    """(index into a law's table, own level) at the levels `now` under choice j."""
    own = 0
    for a in law["axes"]:
        own = own * shape[a] + now[a]
    return (*[j if g == "choice" else now[g] for g in law["given"]], own), own


def law_chances(shape, law, j, now):
    """(n,) chances of a law's next own level from the levels `now` under choice j.

    Where a choice cannot be made the level stays put, so that rows still sum to one."""
    at, own = law_place(shape, law, j, now)
    if law["kind"] == "markov":
        return np.array(law["table"][at], dtype=float)
    out = np.zeros(int(np.prod([shape[a] for a in law["axes"]])))
    target = own if law["kind"] == "fixed" else law["table"][at]
    out[own if target is None else target] = 1.0
    return out


def law_product(shape, laws, J):
    """F (S, J, S), state by state: the outer product of every law's chances, axes in order."""
    cells = list(itertools.product(*[range(m) for m in shape]))
    F = np.zeros((len(cells), J, len(cells)))
    for s, now in enumerate(cells):
        for j in range(J):
            p = np.ones(1)
            for law in sorted(laws, key=lambda law: law["axes"]):
                p = np.multiply.outer(p, law_chances(shape, law, j, now))
            F[s, j] = p.reshape(-1)
    return F


def law_forbids(shape, laws, J):
    """(S, J) bool: choices for which some deterministic law has no next level."""
    cells = list(itertools.product(*[range(m) for m in shape]))
    out = np.zeros((len(cells), J), dtype=bool)
    for s, now in enumerate(cells):
        for j, law in itertools.product(range(J), laws):
            if law["kind"] == "deterministic":
                out[s, j] |= law["table"][law_place(shape, law, j, now)[0]] is None
    return out


def law_blocks(shape, laws):
    """(B, n) state codes with the same levels of all fixed axes, in ascending order."""
    fixed = sorted(a for law in laws if law["kind"] == "fixed" for a in law["axes"])
    groups = {}
    for s, now in enumerate(itertools.product(*[range(m) for m in shape])):
        groups.setdefault(tuple(now[a] for a in fixed), []).append(s)
    return np.array([groups[key] for key in sorted(groups)])


def saturated_bellman(u, ev, beta, attention, default, floor):
    """(v, V, pi, P) state by state; an offered choice keeps at least `floor` of the best one."""
    S, J = u.shape
    v, pi, P, V = u + beta * ev, np.zeros((S, J)), np.zeros((S, J)), np.zeros(S)
    for s in range(S):
        offered = [j for j in range(J) if u[s, j] > -np.inf]
        top = max(v[s, j] for j in offered)
        weight = {j: max(np.exp(v[s, j] - top), floor) for j in offered}
        total = sum(weight.values())
        for j in offered:
            pi[s, j] = weight[j] / total
            P[s, j] = attention[s] * pi[s, j]
        V[s] = top + np.log(total)
        if attention[s] < 1:
            P[s, default[s]] += 1 - attention[s]
            V[s] = attention[s] * V[s] + (1 - attention[s]) * v[s, default[s]]
    return v, V, pi, P


def policy_expectation(F, P, x):
    """(S,) sum over choices of P times the expectation of x, by loops."""
    out = np.zeros(len(x))
    for s, j in itertools.product(*map(range, P.shape)):
        out[s] += P[s, j] * (F[s, j] @ x)
    return out


def pushed(F, P, mu):
    """(S,) masses after one move under P, by loops."""
    out = np.zeros(len(mu))
    for s, j in itertools.product(*map(range, P.shape)):
        out += mu[s] * P[s, j] * F[s, j]
    return out


def relative_matrix(F, P, beta):
    """(S, S) A - 1 A[0] with A = I - beta sum_j P_j F_j: A, less its value at state 0."""
    A = np.eye(len(P)) - beta * markov(P, F)
    return A - A[0]


def relative_solve(F, P, beta, b):
    """x (S,) with x[0] = 0 and (I - beta sum_j P_j F_j) x = b + constant: a bordered system."""
    S = len(P)
    A = np.zeros((S + 1, S + 1))
    A[:S, :S] = np.eye(S) - beta * markov(P, F)
    A[:S, S] = 1.0
    A[S, 0] = 1.0
    return np.linalg.solve(A, np.append(b, 0.0))[:S]


def random_levels(seed, C, E, J, beta, attention=True):
    """(model, R, Q, chain): states c E + e, levels c that move by R (J,C,C) under each choice and
    a rest e that moves by Q[chain[j]], Q (L,E,E), independently of it.

    A level's row is zero under a choice that it never offers.  Level 0 may stay, the last one
    never does; some rows lead to one level, some to several."""
    rng = np.random.default_rng(seed)
    offered = rng.random((C, J)) < 0.8
    offered[np.arange(C), rng.integers(J, size=C)] = True
    R = np.zeros((J, C, C))
    for j, c in itertools.product(range(J), range(C)):
        pool = np.arange(C) if c < C - 1 or C == 1 else np.arange(C - 1)
        to = rng.choice(pool, size=min(len(pool), int(rng.choice([1, 1, 2, 3]))), replace=False)
        R[j, c, to] = offered[c, j] * rng.dirichlet(np.ones(len(to)))
    j = np.flatnonzero(offered[0])[0]
    R[j, 0] = 0.3 * np.eye(C)[0] + 0.7 * R[j, 0]
    L = int(rng.integers(1, J + 1))
    chain = rng.permutation(np.r_[np.arange(L), rng.integers(L, size=J - L)]).astype(np.int64)
    available = np.repeat(offered, E, axis=0)
    default = np.array([rng.choice(np.flatnonzero(row)) for row in available])
    keep = rng.random(available.shape) < 0.8
    keep[np.arange(C * E), default] = True
    a = np.where(rng.random(C * E) < 0.5, 1.0, rng.uniform(0.3, 1.0, size=C * E))
    Q = random_rows(rng, L, E)
    model = {
        "x": rng.normal(size=(C * E, J, 1)),
        "offset": 2.0 * rng.normal(size=(C * E, J)),
        "F": level_product(R, Q, chain),
        "beta": float(beta),
        "available": available & keep,
        "attention": a if attention else np.ones(C * E),
        "default": default,
        "params": np.ones(1),
    }
    return model, R, Q, chain


def level_product(R, Q, chain):
    """F (S,J,S) with S = C E: F[c E + e, j, d E + f] = R[j,c,d] Q[chain[j],e,f], by loops."""
    J, C, _ = R.shape
    E = Q.shape[1]
    F = np.zeros((C * E, J, C * E))
    for j, c, d in itertools.product(range(J), range(C), range(C)):
        F[c * E : c * E + E, j, d * E : d * E + E] = R[j, c, d] * Q[chain[j]]
    return F


def random_policy(seed, model):
    """(S,J) random choice probabilities over available choices."""
    p = np.random.default_rng(seed).gamma(1.0, size=model["available"].shape) + 0.05
    p = np.where(model["available"], p, 0.0)
    return p / p.sum(axis=1, keepdims=True)


def sweep_split(F, P, beta, E, rank):
    """(M, U) with I - beta F^P = M - U: U are the moves to levels of a later rank."""
    chain = beta * markov(P, F)
    M, U = np.eye(len(P)), np.zeros(chain.shape)
    for s, t in itertools.product(range(len(P)), range(len(P))):
        if rank[t // E] > rank[s // E]:
            U[s, t] = chain[s, t]
        else:
            M[s, t] -= chain[s, t]
    return M, U


def combine_rows(weights, rows):
    """(E,) sum of weighted rows, by loops."""
    out = np.zeros(rows.shape[1])
    for w, row in zip(weights, rows):
        out += w * row
    return out


def applied(overwrite, x):
    """What a function that overwrites an array, with room of the same size, makes of ``x``."""
    x = np.array(x, dtype=float)
    overwrite(x, np.empty_like(x))
    return x


def push_cells(F, P, mu, periods, worth, group, groups):
    """(cells (periods,groups,J), values (periods+1,M), mu after), by loops; worth is (M,S)."""
    cells = np.zeros((periods, groups, P.shape[1]))
    values = np.zeros((periods + 1, len(worth)))
    for t in range(periods + 1):
        for s in range(len(mu)):
            values[t] += mu[s] * worth[:, s]
            for j in range(P.shape[1]):
                if t < periods:
                    cells[t, group[s], j] += mu[s] * P[s, j]
        if t < periods:
            mu = pushed(F, P, mu)
    return cells, values, mu


def maximum_causal_entropy(F, x, offset, available, beta, n, iterations=4000):
    """Ziebart, Bagnell and Dey (2010): match discounted features, by the textbook.

    F (S, J, S), x (S, J, K), offset and available (S, J), n (S, J) counts. A backward pass gives
    the soft policy, a forward pass the discounted visits that start where the data do; theta
    climbs on the difference of features (scipy's L-BFGS on the dual, whose gradient it is).
    """
    from scipy.optimize import minimize as climb

    S, J, K = x.shape
    start, total = n.sum(axis=1), n.sum()

    def visits(first, P):
        """Discounted (state, choice) visits: first choices given, then the policy."""
        seen = first.copy()
        now = np.einsum("sj,sjt->t", first, F)
        for t in range(1, iterations):
            flow = beta**t * now[:, None] * P
            seen += flow
            now = np.einsum("s,sj,sjt->t", now, P, F)
            if beta**t < 1e-13:
                break
        return seen

    def dual(theta):
        u = np.where(available, x @ theta + offset, -np.inf)
        V = np.zeros(S)
        for _ in range(iterations):
            v = u + beta * F @ V
            top = v.max(axis=1)
            new = top + np.log(np.exp(v - top[:, None]).sum(axis=1))
            if np.abs(new - V).max() < 1e-12:
                break
            V = new
        P = np.exp(v - new[:, None])
        observed, expected = visits(n, P), visits(start[:, None] * P, P)
        logs = np.where(n > 0, v - new[:, None], 0.0)
        return -(n * logs).sum() / total, -np.einsum("sj,sjk->k", observed - expected, x) / total

    return climb(dual, np.zeros(K), jac=True, method="BFGS", options={"gtol": 1e-9}).x


def tilted_moments(clicks, fails, waiting, due, mean, var):
    """Log evidence, mean and variance of N(mean, var) times a probit cell, on a fine grid."""
    from scipy.stats import norm

    def log_density(z):
        out = norm.logpdf(z, mean, np.sqrt(var))
        if clicks:
            out = out + clicks * norm.logcdf(z)
        if fails:
            out = out + fails * norm.logcdf(-z)
        if waiting:
            out = out + waiting * np.log1p(-due * norm.cdf(z))
        return out

    low, high = mean - 14 * np.sqrt(var), mean + 14 * np.sqrt(var)
    for _ in range(4):  # close in on where the mass is
        z = np.linspace(low, high, 20001)
        log = log_density(z)
        near = z[log > log.max() - 60]
        low, high = near[0] - (z[1] - z[0]), near[-1] + (z[1] - z[0])
    z = np.linspace(low, high, 40001)
    log = log_density(z)
    p = np.exp(log - log.max())
    total = np.trapezoid(p, z)
    centre = np.trapezoid(p * z, z) / total
    return (
        np.log(total) + log.max(),
        centre,
        np.trapezoid(p * (z - centre) ** 2, z) / total,
    )


def probit_gibbs(x, y, m0, v0, draws, seed=0):
    """Draws of probit weights by data augmentation (Albert and Chib 1993)."""
    from scipy.special import ndtr, ndtri

    rng = np.random.default_rng(seed)
    cov = np.linalg.inv(np.diag(1 / v0) + x.T @ x)
    root = np.linalg.cholesky(cov)
    w, out = np.array(m0, float), np.empty((draws, len(m0)))
    for i in range(draws):
        mean = x @ w
        u = rng.random(len(y))
        cut = ndtr(-mean)
        q = np.where(y == 1, cut + u * (1 - cut), u * cut)
        z = mean + ndtri(np.clip(q, 1e-15, 1 - 1e-15))
        w = cov @ (m0 / v0 + x.T @ z) + root @ rng.standard_normal(len(m0))
        out[i] = w
    return out
