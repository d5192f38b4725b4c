"""Reference solution of the prototype membership (papers.md 7.3 to 7.5), numpy only.

Written from the formulas and not from the package, which it does not import: tests compare the two
state by state. Calibration: papers.md 7.4, three types, 43 contract levels, five benefits.

Arrays over states have shape (43, 32): contract state by engagement combination.  Actions are
0 = N (no membership next month), 1 = M (monthly), 2 = Y (annual).  Every function takes a dict of
primitives (see `primitives`) and is deterministic.  Shocks are mean zero: value = log-sum-exp.
"""

import functools
import itertools

import numpy as np

N, M, Y = range(3)
COMBOS = np.array(list(itertools.product([0, 1], repeat=5)))  # ship, video, music, grocery, gaming
STATES = (
    ["NE", "NL", "TM", "TY"]
    + [("M", tau) for tau in range(3)]
    + [("Y", m, tau) for m in range(12) for tau in range(3)]
)
INDEX = {state: i for i, state in enumerate(STATES)}
MONTHLY = [INDEX["M", tau] for tau in range(3)]
ANNUAL = [INDEX["Y", m, tau] for m in range(12) for tau in range(3)]
TRIAL = [INDEX["TM"], INDEX["TY"]]
OUTSIDE = [INDEX["NE"], INDEX["NL"]]
RENEWAL = [INDEX["Y", 0, tau] for tau in range(3)]


def primitives():
    """Constants of papers.md 7.4."""
    return {
        "beta": 0.95 ** (1 / 12),
        "p_month": 14.99,
        "p_year": 139.0,
        "alpha": 0.05,
        "omega": 0.05 * np.array([8, 6, 2.5, 3, 1.5]),
        "theta_ten": 0.05,
        "kappa_join": 1.15,
        "kappa_cancel": 0.6,
        "kappa_switch": 0.5,
        "attention": {
            "outside": 0.15,
            "trial": 0.6,
            "monthly": 0.2,
            "annual": 0.03,
            "renewal": 0.42,
        },
        "gain_in": [0.30, 0.12, 0.06, 0.05, 0.02],
        "stay_in": [0.92, 0.93, 0.93, 0.93, 0.93],
        "gain_out": [0.22, 0.05, 0.03, 0.02, 0.01],
        "stay_out": [0.88, 0.82, 0.85, 0.85, 0.85],
        "types": [
            {"share": 0.50, "scale": 1.06, "base": 0.1, "kappa_up": 0.0},
            {"share": 0.25, "scale": 0.95, "base": 0.1, "kappa_up": 4.5},
            {"share": 0.25, "scale": 0.33, "base": -0.1, "kappa_up": 2.0},
        ],
        "naive": False,  # True: members believe that they will be attentive in member states
    }


@functools.cache
def contract_kernels():
    """(3, 43, 43) contract transition matrices by action (zero rows where not available)."""
    g = np.zeros((3, 43, 43))

    def put(action, start, *ends):
        for end, prob in ends:
            g[action, INDEX[start], INDEX[end]] += prob

    put(N, "NE", ("NE", 1))
    put(M, "NE", ("TM", 1))
    put(Y, "NE", ("TY", 1))
    put(N, "NL", ("NL", 11 / 12), ("NE", 1 / 12))
    for start in ("NL", "TM", "TY"):
        put(M, start, (("M", 0), 1))
        put(Y, start, (("Y", 11, 0), 1))
    put(N, "TM", ("NL", 1))
    put(N, "TY", ("NL", 1))
    for tau in range(3):
        up = min(tau + 1, 2)
        put(N, ("M", tau), ("NL", 1))
        put(M, ("M", tau), (("M", tau), 11 / 12), (("M", up), 1 / 12))
        put(Y, ("M", tau), (("Y", 11, tau), 1))
        for m in range(1, 12):
            put(N, ("Y", m, tau), ("NL", 1))
            put(Y, ("Y", m, tau), (("Y", m - 1, tau), 1))
        put(N, ("Y", 0, tau), ("NL", 1))
        put(M, ("Y", 0, tau), (("M", up), 1))
        put(Y, ("Y", 0, tau), (("Y", 11, up), 1))
    return g


def engagement_kernels(p):
    """(3, 32, 32) engagement transition matrices: outside law for N, member law for M and Y."""
    laws = {}
    for side in ("out", "in"):
        law = np.ones((1, 1))
        for gain, stay in zip(p["gain_" + side], p["stay_" + side], strict=True):
            law = np.kron(law, [[1 - gain, gain], [1 - stay, stay]])
        laws[side] = law
    return np.array([laws["out"], laws["in"], laws["in"]])


def payments(p):
    """(3, 43, 32) net payment d - R."""
    net = np.zeros((3, 43, 32))
    paying = [INDEX["NL"], *TRIAL, *MONTHLY, *RENEWAL]
    net[M, paying] = p["p_month"]
    net[Y, paying] = p["p_year"]
    for m, tau in itertools.product(range(1, 12), range(3)):
        net[N, INDEX["Y", m, tau]] = -p["p_year"] * m / 12 * (COMBOS.sum(1) == 0)
    return net


def utilities(p, kind):
    """(3, 43, 32) flow utility of one type, -inf where the action is not available."""
    tenure = np.array([s[-1] if isinstance(s, tuple) else 0 for s in STATES])
    benefit = kind["base"] + kind["scale"] * COMBOS @ p["omega"]
    u = -p["alpha"] * payments(p)
    u[[M, Y]] += benefit + p["theta_ten"] * tenure[:, None]
    u[M:, OUTSIDE] -= p["kappa_join"]
    u[N, TRIAL] -= p["kappa_cancel"] / 2
    u[N, MONTHLY + ANNUAL] -= p["kappa_cancel"]
    u[Y, MONTHLY] -= p["kappa_switch"]
    u[M, RENEWAL] -= p["kappa_switch"]
    u[Y, [INDEX["NL"], *TRIAL, *MONTHLY, *RENEWAL]] -= kind["kappa_up"]
    u[M, [c for c in ANNUAL if c not in RENEWAL]] = -np.inf
    return u


def attention(p, perceived=False):
    """Attention probability by contract state (43, 1), true or as perceived by the members."""
    a = p["attention"]
    lam = np.empty((43, 1))
    lam[OUTSIDE], lam[TRIAL], lam[MONTHLY] = a["outside"], a["trial"], a["monthly"]
    lam[ANNUAL], lam[RENEWAL] = a["annual"], a["renewal"]
    if perceived and p["naive"]:
        lam[TRIAL + MONTHLY + ANNUAL] = 1.0
    return lam


@functools.cache
def defaults():
    """(3, 43, 1) indicator of the default action."""
    d = np.zeros((3, 43, 1))
    d[N, OUTSIDE] = d[M, [INDEX["TM"], *MONTHLY]] = d[Y, [INDEX["TY"], *ANNUAL]] = 1
    return d


def expected(p, value):
    """(3, 43, 32) expected next-month value by action."""
    return contract_kernels() @ value @ engagement_kernels(p).transpose(0, 2, 1)


def step(p, kind, value_next):
    """Bellman step: perceived value and logit probabilities pi given next month's value."""
    v = utilities(p, kind) + p["beta"] * expected(p, value_next)
    top = v.max(0)
    logsum = top + np.log(np.exp(v - top).sum(0))
    at_default = np.where(defaults() > 0, v, 0).sum(0)
    lam = attention(p, perceived=True)
    return lam * logsum + (1 - lam) * at_default, np.exp(v - logsum)


def mixed(pi, lam):
    """Executed choice probabilities: default with probability 1 - lambda."""
    return lam * pi + (1 - lam) * defaults()


def resolvent(p, prob, reward):
    """(I - beta F^P)^{-1} reward for choice probabilities `prob`."""
    matrix = np.eye(43 * 32)
    for share, g, law in zip(prob, contract_kernels(), engagement_kernels(p), strict=True):
        matrix -= p["beta"] * share.reshape(-1, 1) * np.kron(g, law)
    return np.linalg.solve(matrix, reward.ravel()).reshape(43, 32)


def solve(p, kind, tol=1e-12):
    """Stationary perceived value, logit pi and executed P, by Newton steps on the value."""
    value, done = np.zeros((43, 32)), False
    for _ in range(50):
        new, pi = step(p, kind, value)
        if done:  # one step after the residual test, since the error can be residual / (1 - beta)
            return new, pi, mixed(pi, attention(p))
        done = np.abs(new - value).max() < tol
        value = value + resolvent(p, mixed(pi, attention(p, perceived=True)), new - value)
    raise RuntimeError("Newton steps did not converge")


def push(p, dist, prob, laws=None):
    """Distribution over states one month later; `laws` are engagement_kernels(p), made before."""
    flow = prob * dist
    laws = engagement_kernels(p) if laws is None else laws
    return (contract_kernels().transpose(0, 2, 1) @ flow @ laws).sum(0)


def steady(p, prob, months=600):
    """Distribution after `months` pushes from NE with uniform engagement."""
    dist, laws = np.zeros((43, 32)), engagement_kernels(p)
    dist[INDEX["NE"]] = 1 / 32
    for _ in range(months):
        dist = push(p, dist, prob, laws)
    return dist


def experience(p, kind, pi):
    """Experience value W of following pi under the true attention."""
    u, lam, default = utilities(p, kind), attention(p), defaults()
    ok = np.isfinite(u)
    attentive = np.where(ok, pi * (np.where(ok, u, 0) - np.log(np.where(ok, pi, 1))), 0).sum(0)
    reward = lam * attentive + (1 - lam) * np.where(default > 0, u, 0).sum(0)
    return resolvent(p, mixed(pi, lam), reward)


def flows(p, dist, prob):
    """Additive components of the report of one type, in the order `ratios` expects."""
    member = dist * (1 - prob[N])
    revenue = 12 * (dist * prob * payments(p)).sum()
    parts = [dist[MONTHLY].sum(), dist[ANNUAL].sum(), dist[TRIAL].sum(), member[TRIAL].sum()]
    return np.array([*parts, revenue, *dist[RENEWAL].sum(1), *member[RENEWAL].sum(1)])


def ratios(flow):
    """The reported statistics from `flows` (of one type, or share-weighted)."""
    monthly, annual, trial, converted, revenue = flow[:5]
    due, renewed = flow[5:8], flow[8:]
    out = {
        "penetration": monthly + annual,
        "monthly_share": monthly / (monthly + annual),
        "conversion": converted / trial,
        "renewal": renewed.sum() / due.sum(),
    }
    return out | {f"renewal_{t}": renewed[t] / due[t] for t in range(3)} | {"revenue": revenue}


def solve_all(p):
    """For every type: value, pi, P, steady distribution and experience value."""
    out = []
    for kind in p["types"]:
        value, pi, prob = solve(p, kind)
        out.append(
            {
                "value": value,
                "pi": pi,
                "prob": prob,
                "dist": steady(p, prob),
                "experience": experience(p, kind, pi),
            }
        )
    return out


def report(p, solved, base):
    """Statistics by type and share-weighted; surplus (dollars) against the solved baseline."""
    parts = [flows(p, s["dist"], s["prob"]) for s in solved]
    shares = [kind["share"] for kind in p["types"]]
    rows = [ratios(flow) for flow in parts] + [ratios(shares @ np.array(parts))]
    for name, key in (("surplus", "value"), ("surplus_experience", "experience")):
        gain = [
            (b["dist"] * (s[key] - b[key])).sum() / p["alpha"]
            for s, b in zip(solved, base, strict=True)
        ]
        for row, g in zip(rows, [*gain, np.dot(shares, gain)], strict=True):
            row[name] = g
    gap = [np.abs(s["experience"] - s["value"]).max() for s in solved]
    for row, g in zip(rows, [*gap, max(gap)], strict=True):
        row["max_abs_W_minus_V"] = g
    return dict(zip(["type0", "type1", "type2", "all"], rows, strict=True))


def scenarios(p):
    """Primitives of the counterfactuals, by name."""

    def omega(*factors):
        return p | {"omega": p["omega"] * factors}

    return {
        "baseline": p,
        "no_video": omega(1, 0, 1, 1, 1),
        "no_shipping": omega(0, 1, 1, 1, 1),
        "gaming_doubled": omega(1, 1, 1, 1, 2),
        "annual_159": p | {"p_year": 159.0},
        "monthly_17.99": p | {"p_month": 17.99},
        "attentive": p | {"attention": dict.fromkeys(p["attention"], 1.0)},
    }


def gradient(p, kind, name):
    """dV/dtheta (sophisticated) for alpha, kappa_join or omega_video, by the resolvent."""
    du = np.zeros((3, 43, 32))
    if name == "alpha":
        du = -payments(p)
    elif name == "kappa_join":
        du[M:, OUTSIDE] = -1
    else:
        du[M:] = kind["scale"] * COMBOS[:, 1]
    prob = solve(p, kind)[2]
    return resolvent(p, prob, (prob * du).sum(0))


def difference(p, kind, name, h):
    """Central finite difference of V in the same parameters."""
    key, shift = ("omega", h * np.eye(5)[1]) if name == "omega_video" else (name, h)
    up, down = (solve(p | {key: p[key] + sign * shift}, kind)[0] for sign in (1, -1))
    return (up - down) / (2 * h)


def announced_path(old, new, lag, months=24):
    """Penetration at the start of months 0..`months`, by type: `new` announced in month 0."""
    paths = []
    for kind in old["types"]:
        dist = steady(old, solve(old, kind)[2])
        value, _, prob = solve(new, kind)
        early = []
        for _ in range(lag):
            value, pi = step(old, kind, value)
            early.insert(0, mixed(pi, attention(old)))
        path = [dist[MONTHLY + ANNUAL].sum()]
        for t in range(months):
            dist = push(old, dist, early[t] if t < lag else prob)
            path.append(dist[MONTHLY + ANNUAL].sum())
        paths.append(path)
    return np.array(paths)
