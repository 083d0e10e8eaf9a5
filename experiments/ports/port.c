/* tinymup in C99: trains the Transformer of a case of tests/vectors in double precision, and prints
 * the case's digests. Not claimed: mlp-adamw and mlp-sgd. To compile it and to run it:
 *   gcc -std=c99 -O2 -o /tmp/port experiments/ports/port.c -lm
 *   python experiments/ports/case_to_text.py tests/vectors/CASE.json | /tmp/port > MINE.json
 * The forward pass takes the parameters in the case's order and records its operations, and the
 * backward pass runs the record from its end. An operation is one function with both directions,
 * written by hand. Memory is freed at exit. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 1024, VOCAB = 256 };
typedef struct { double *at, *grad; int row, col; } View;    /* (i, j) is at[i * row + j * col] */
typedef struct { double y, dx, dw; } Mult;                   /* factors of an op's three results */
typedef struct { double skip, amount, enter, leave; } Branch;
typedef struct { double y, dx, dw; int j; } Point;           /* f(x_i, w_j) and its derivatives */
typedef struct {
    char name[40];
    int in, out, size, heads;                                /* a vector has in = 1; Muon's heads */
    struct { double mean, std, lr, eps, shrink; Mult mult; double shape_factor; } row;
    View w;
    double *m, *v, *u;                                       /* moments; u is subtracted from w */
} Param;
typedef struct Op {
    void (*run)(const struct Op *, int backward);
    View x, w, y;                                            /* inputs (n, k), (k, m); output */
    int n, k, m;
    Mult mult;
    Point (*point)(const struct Op *, int i);
    Branch branch;
} Op;

static struct { Mult attention, attention_out, loss, readout; double activation, alpha, clip, beta1,
                beta2, momentum, nesterov, fresh, safety, threshold; } c;  /* of the case */
static int batch, seq, rows, width, depth, head_dim, heads, triples, swiglu, op_count, watching = 1;
static double triple[MOST][3], schedule[MOST], tokens[MOST], largest[MOST], one = 1, ignored;
static Param params[MOST], *end = params, *next_param;       /* *end: the tied readout */
static Branch branches[MOST];
static Op ops[MOST];
static View ones = {&one, &ignored, 0, 0}, none;
static const char *separator;

static double *zeros(int n) { return calloc(n, sizeof(double)); }
static View array(int n, int m) { return (View){zeros(n * m), zeros(n * m), m, 1}; }
static View part(View a, int i, int row) { return (View){a.at + i, a.grad + i, row, 1}; }
static View transposed(View a) { return (View){a.at, a.grad, a.col, a.row}; }
static View gradient(View a) { return (View){a.grad, NULL, a.row, a.col}; }
static double *at(View a, int i, int j) { return &a.at[i * a.row + j * a.col]; }

/* A digest: the shape, the norm, the sum of a[k] cos k, the first three values and the last */
static void digest(const char *format, int block, const double *a, int rank, const int *dims) {
    double squares = 0, cosine = 0;
    int n = 1;
    if (!watching) return;
    printf("%s\"", separator);
    printf(format, block), printf("\": {\"shape\": [");
    for (int i = 0; i < rank; n *= dims[i++]) printf("%s%d", i ? ", " : "", dims[i]);
    for (int k = 0; k < n; k++) squares += a[k] * a[k], cosine += a[k] * cos(k);
    printf("], \"norm\": %.17g, \"cosine\": %.17g, \"first\": [%.17g, %.17g, %.17g], "
           "\"last\": %.17g}", sqrt(squares), cosine, a[0], a[1], a[2], a[n - 1]);
    separator = ",\n";
}

static void section(const char *name) {
    if (watching) printf("%s\"%s\": {", separator ? "},\n" : "{", name);
    separator = "\n";
}

static void digest_params(const char *name, int gradients) {
    section(name);
    for (Param *p = params; p < end; p++)
        digest(p->name, 0, gradients ? p->w.grad : p->w.at, 1 + (p->in > 1),
               (int[]){p->in, p->out} + (p->in == 1));
}

/* z += s x w, with x (n, k) and w (k, m) */
static void add_product(View z, double s, View x, View w, int n, int k, int m) {
    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++)
            for (int l = 0; l < k; l++) *at(z, i, j) += s * *at(x, i, l) * *at(w, l, j);
}

/* y += A x w;  dx += A_dx dy w^T,  dw += A_dw x^T dy */
static void product(const Op *op, int backward) {
    View x = op->x, w = op->w, dy = gradient(op->y);
    if (!backward) { add_product(op->y, op->mult.y, x, w, op->n, op->k, op->m); return; }
    add_product(gradient(x), op->mult.dx, dy, transposed(w), op->n, op->m, op->k);
    add_product(gradient(w), op->mult.dw, transposed(x), dy, op->k, op->n, op->m);
}

/* y = x/r,  r = sqrt(mean x^2 + 1e-6);  dx += leave (dy - y mean(y dy)) / r */
static void norm(const Op *op, int backward) {
    for (int i = 0; i < rows * width; i += width) {
        double *x = op->x.at + i, *y = op->y.at + i, *dy = op->y.grad + i, squares = 0, mean = 0;
        for (int j = 0; j < width; j++) squares += x[j] * x[j], mean += y[j] * dy[j] / width;
        double r = sqrt(squares / width + 1e-6);
        for (int j = 0; j < width; j++)
            if (!backward) y[j] = x[j] / r;
            else op->x.grad[i + j] += op->branch.leave * (dy[j] - mean * y[j]) / r;
    }
}

/* y = softmax(A x) of each row, for k = 1 up to the diagonal;  dx += A_dx y (dy - sum y dy) */
static void softmax(const Op *op, int backward) {
    for (int i = 0; i < op->n; i++) {
        double *y = at(op->y, i, 0), *dy = at(gradient(op->y), i, 0), z[VOCAB];
        double most = -INFINITY, sum = 0, dot = 0;
        int m = op->k ? i + 1 : op->m;
        for (int j = 0; j < m; j++) most = fmax(most, z[j] = op->mult.y * *at(op->x, i, j));
        for (int j = 0; j < m; j++) sum += exp(z[j] - most), dot += y[j] * dy[j];
        for (int j = 0; j < m; j++)
            if (!backward) y[j] = exp(z[j] - most) / sum;
            else *at(gradient(op->x), i, j) += op->mult.dx * y[j] * (dy[j] - dot);
    }
}

/* The operations on single numbers: y_i = f(x_i, w_j);  dx_i += f_x dy_i,  dw_j += f_w dy_i */
static void pointwise(const Op *op, int backward) {
    for (int i = 0; i < op->n * op->m; i++) {
        Point f = op->point(op, i);
        if (!backward) op->y.at[i] = f.y;
        else op->x.grad[i] += f.dx * op->y.grad[i];
        if (backward && op->w.at) op->w.grad[f.j] += f.dw * op->y.grad[i];
    }
}

static Point gain(const Op *op, int i) {                     /* A x w */
    double x = op->x.at[i], w = op->w.at[i % width];
    return (Point){op->mult.y * x * w, op->mult.dx * w, op->mult.dw * x, i % width};
}

static Point join(const Op *op, int i) {                     /* the stream x and its branch w */
    Branch b = op->branch;
    return (Point){b.skip * op->x.at[i] + b.amount * op->w.at[i], b.skip, b.enter, i};
}

static Point rope(const Op *op, int i) {                     /* w is x: pairs (j, j + D/2) */
    int half = head_dim / 2, j = i % head_dim, other = j < half ? i + half : i - half;
    double angle = i / width % seq * pow(10000, -2.0 * (j % half) / head_dim);
    double cosine = cos(angle), sine = j < half ? -sin(angle) : sin(angle);
    return (Point){cosine * op->x.at[i] + sine * op->x.at[other], cosine, sine, other};
}

/* SwiGLU: f x s(z) w, with the gate x, z = alpha x, s = sigmoid.  GELU: f x s(v), where v is
 * sqrt(8/pi) (z + 0.044715 z^3), since (1 + tanh(v/2))/2 = sigmoid(v) */
static Point activate(const Op *op, int i) {
    double x = op->x.at[i], z = c.alpha * x, w = swiglu ? op->w.at[i] : 1, f = c.activation;
    double root = swiglu ? 1 : sqrt(8 / acos(-1)), cube = swiglu ? 0 : 0.044715;
    double s = 1 / (1 + exp(-root * (z + cube * z * z * z)));
    double slope = s + z * s * (1 - s) * root * (1 + 3 * cube * z * z);
    return (Point){f * x * s * w, f * slope * w, f * x * s, i};
}

static View apply(Op op) {
    if (!op.y.at) op.y = array(op.n, op.m);
    op.run(&op, 0);
    return (ops[op_count++] = op).y;
}

static View dense(View x) {                                  /* A x w + A_b b, with the next w */
    const Param *p = next_param++, *b = strstr(p[1].name, ".bias") ? next_param++ : NULL;
    View y = apply((Op){product, x, p->w, none, rows, p->in, p->out, p->row.mult});
    return b ? apply((Op){product, ones, b->w, y, rows, 1, p->out, b->row.mult}) : y;
}

static View normed(View x, Branch branch) {                  /* times the gain, if that is next */
    const Param *p = next_param->in == 1 ? next_param++ : NULL;
    x = apply((Op){norm, x, none, none, rows, 1, width, .branch = branch});
    return p ? apply((Op){pointwise, x, p->w, none, rows, 1, width, p->row.mult, gain}) : x;
}

static View attention(int block, View x) {
    View q = dense(x), k = dense(x), v = dense(x), y = array(rows, width);
    View logits = array(batch * heads * seq, seq);           /* a row for each key */
    q = apply((Op){pointwise, q, q, none, rows, 1, width, .point = rope});
    k = apply((Op){pointwise, k, k, none, rows, 1, width, .point = rope});
    for (int i = 0; i < batch * heads; i++) {
        int h = i / heads * seq * width + i % heads * head_dim;
        View q_i = part(q, h, width), k_i = part(k, h, width), v_i = part(v, h, width);
        View s = transposed(part(logits, i * seq * seq, seq)), y_i = part(y, h, width);
        apply((Op){product, q_i, transposed(k_i), s, seq, head_dim, seq, c.attention});
        View p = apply((Op){softmax, s, none, none, seq, 1, seq, {1, 1, 0}});
        apply((Op){product, p, v_i, y_i, seq, seq, head_dim, c.attention_out});
        double *most = largest + block * heads + i % heads;  /* for QK-Clip */
        for (int j = 0; j < seq * seq; j++) if (j / seq <= j % seq) *most = fmax(*most, s.at[j]);
    }
    digest("block%d.attention_logits", block, logits.at, 4, (int[]){batch, heads, seq, seq});
    return dense(y);
}

static View feed_forward(View x) {
    View a = dense(x), b = swiglu ? dense(x) : none;
    return dense(apply((Op){pointwise, a, b, none, rows, 1, a.row, .point = activate}));
}

/* The logits. The lookup is a product with one-hot rows. */
static View transformer(void) {
    View x = array(rows, VOCAB);
    for (int i = 0; i < rows; i++) *at(x, i, (int)tokens[i + i / seq]) = 1;
    next_param = params, op_count = 0, x = dense(x);
    digest("embedding", 0, x.at, 2, (int[]){rows, width});
    for (int i = 0; i < 2 * depth; i++) {
        Branch b = branches[i];
        View n = normed(x, b), y = i % 2 ? feed_forward(n) : attention(i / 2, n);
        digest(i % 2 ? "block%d.ffn" : "block%d.attention", i / 2, y.at, 2, (int[]){rows, width});
        x = apply((Op){pointwise, x, y, none, rows, 1, width, .branch = b, .point = join});
    }
    x = normed(x, (Branch){.leave = 1});
    digest("final_norm", 0, x.at, 2, (int[]){rows, width});
    return dense(x);
}

/* Newton-Schulz: x <- x/(safety |x|), then x <- (a + b x x^T + c (x x^T)^2) x for each triple */
static void orthogonalize(View x, int n, int m) {
    if (n > m) { orthogonalize(transposed(x), m, n); return; }
    double squares = 0;
    for (int i = 0; i < n * m; i++) squares += pow(*at(x, i / m, i % m), 2);
    double s = 1 / (c.safety * fmax(sqrt(squares), 1e-15));
    for (int t = 0; t < triples; t++, s = 1) {
        View gram = array(n, n), sum = array(n, n), y = array(n, m);
        add_product(gram, s * s, x, transposed(x), n, m, n);
        add_product(sum, triple[t][2], gram, gram, n, n, n);
        for (int i = 0; i < n * n; i++)
            sum.at[i] += triple[t][1] * gram.at[i] + (i % (n + 1) ? 0 : triple[t][0]);
        add_product(y, s, sum, x, n, n, m);
        for (int i = 0; i < n * m; i++) *at(x, i / m, i % m) = y.at[i];
    }
}

/* w <- (1 - s shrink) w - s lr u.  u is AdamW's m/(sqrt(v) + eps), bias-corrected with t from 1, or
 * the momentum, for Muon orthogonalized.  QK-Clip: w <- sqrt(min(1, threshold/largest)) w */
static void update(Param *p, int t, double s, double clip) {
    int adam = p->row.eps > 0, columns = p->heads ? p->out / p->heads : 0;
    double decay = adam ? c.beta1 : c.momentum, fresh = adam ? 1 - c.beta1 : c.fresh;
    for (int i = 0; i < p->size; i++) {
        double g = clip * p->w.grad[i], *m = p->m + i, *v = p->v + i;
        *m = decay * *m + fresh * g, *v = c.beta2 * *v + (1 - c.beta2) * g * g;
        p->u[i] = !adam ? (c.nesterov ? decay * *m + fresh * g : *m)
                : *m / (1 - pow(c.beta1, t)) / (sqrt(*v / (1 - pow(c.beta2, t))) + p->row.eps);
        p->w.grad[i] = 0;
    }
    for (int h = 0; h < p->heads; h++)                       /* none without Muon */
        orthogonalize((View){p->u + h * columns, NULL, p->out, 1}, p->in, columns);
    for (int i = 0; i < p->size; i++) {
        p->w.at[i] -= s * (p->row.shrink * p->w.at[i] + p->row.lr * p->row.shape_factor * p->u[i]);
        if (c.threshold && (strstr(p->name, ".query") || strstr(p->name, ".key")))
            p->w.at[i] *= sqrt(c.threshold / fmax(
                c.threshold, largest[atoi(p->name + 5) * heads + i % p->out / head_dim]));
    }
}

static void read_numbers(void *to, int n) {
    for (double *x = to; n > 0; n--) if (scanf("%lf", x++) != 1) exit(1);
}

int main(void) {
    int steps, count, last_muon;
    double losses[MOST] = {0}, norms[MOST] = {0};
    if (scanf("%d %d %d %d %d %d %d %d %d %d", &steps, &batch, &seq, &width, &depth, &head_dim,
              &swiglu, &triples, &count, &last_muon) != 10) return 1;
    rows = batch * seq, heads = width / head_dim;
    read_numbers(&c, sizeof c / sizeof(double)), read_numbers(schedule, steps);
    read_numbers(triple, 3 * triples), read_numbers(branches, 4 * 2 * depth);
    for (Param *p = end; p < params + count; p = ++end) {
        if (scanf("%39s %d %d %d", p->name, &p->in, &p->out, &p->heads) != 4) return 1;
        read_numbers(&p->row, sizeof p->row / sizeof(double));
        p->size = p->in * p->out, p->w = array(p->in, p->out);
        p->m = zeros(p->size), p->v = zeros(p->size), p->u = zeros(p->size);
        long long u = 48271LL * (p - params + 1) % 2147483647;
        for (int i = 0; i < p->size; i++, u = 48271 * u % 2147483647)
            p->w.at[i] = p->row.mean + p->row.std * sqrt(12) * (u / 2147483647.0 - 0.5);
    }
    *end = (Param){.in = width, .out = VOCAB, .w = transposed(params->w), .row.mult = c.readout};
    digest_params("init", 0);
    for (int t = 0; t < steps; t++, watching = 0) {
        read_numbers(tokens, batch * (seq + 1)), memset(largest, 0, sizeof largest);
        section("activations");
        View logits = transformer();
        digest("logits", 0, logits.at, 2, (int[]){rows, VOCAB});
        View p = apply((Op){softmax, logits, none, none, rows, 0, VOCAB, c.loss});
        for (int i = 0; i < rows; i++) {                     /* the loss is the mean of -log p */
            int target = i * VOCAB + (int)tokens[i + i / seq + 1];
            losses[t] -= log(p.at[target]) / rows, p.grad[target] = -1 / p.at[target];
        }
        while (op_count--) ops[op_count].run(&ops[op_count], 1);
        digest_params("gradients", 1);
        for (Param *p = params; p < end; p++) for (int i = 0; i < p->size; i++)
            norms[t] = hypot(norms[t], p->w.grad[i] / p->row.mult.y);
        for (Param *p = params; p < end; p++)
            update(p, t + 1, schedule[t], c.clip ? fmin(1, c.clip / norms[t]) : 1);
        Param *o = params + last_muon;
        if (triples) section("orthogonalized"), digest(o->name, 0, o->u, 2, (int[]){o->in, o->out});
        digest_params("after_first_step", 0);
    }
    watching = 1;
    digest_params("after_last_step", 0);
    for (int t = 0; t < steps; t++) printf("%s%.17g", t ? ", " : "},\n\"losses\": [", losses[t]);
    printf("], \"loss\": %.17g, \"effective_gradient_norm\": %.17g}\n", losses[0], norms[0]);
}
