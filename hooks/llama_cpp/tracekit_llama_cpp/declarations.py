"""What of llama.cpp's C interface is used, as its headers declare it, and the builds whose headers were compared.

Structs are passed by value, so a build whose layout is another one would read and write beside them: only builds of
`BUILDS` are used, and `library` compares the numbers that they fill in with those of the headers.

Source: `include/llama.h`, `ggml/include/ggml.h` and `ggml/include/ggml-backend.h` in the source package of each build.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

BUILDS: Mapping[str, frozenset[str]] = {
    "2026.10.11549": frozenset(),
    "2026.9.11063": frozenset({"moe_cache_size"}),
    "2026.9.10809": frozenset({"moe_cache_size"}),
    "2026.8.10566": frozenset({"moe_cache_size", "lazy_mode"}),
}
"""Versions of the package `xllamacpp` that have these declarations, each with the fields that its structs lack."""

DECLARATIONS = """
typedef int32_t llama_token;
typedef int32_t llama_pos;
typedef int32_t llama_seq_id;

struct ggml_tensor {
    int type;
    void * buffer;
    int64_t ne[4];
    size_t nb[4];
    int op;
    int32_t op_params[16];
    int32_t flags;
    struct ggml_tensor * src[10];
    struct ggml_tensor * view_src;
    size_t view_offs;
    void * data;
    char name[64];
    void * extra;
    char padding[8];
};

typedef bool (*eval_callback)(struct ggml_tensor * t, bool ask, void * user_data);
typedef void (*log_callback)(int level, const char * text, void * user_data);

struct llama_model_params {
    void * devices;
    const void * tensor_buft_overrides;
    int32_t n_gpu_layers;
    int split_mode;
    int load_mode;
    int lazy_mode;
    int32_t main_gpu;
    const float * tensor_split;
    void * progress_callback;
    void * progress_callback_user_data;
    const void * kv_overrides;
    bool vocab_only;
    bool check_tensors;
    bool use_extra_bufts;
    bool no_host;
    bool no_alloc;
    bool load_mtp;
};

struct llama_context_params {
    uint32_t n_ctx;
    uint32_t n_batch;
    uint32_t n_ubatch;
    uint32_t n_seq_max;
    uint32_t n_rs_seq;
    uint32_t n_outputs_max;
    uint32_t n_outputs_max_per_seq;
    int32_t n_threads;
    int32_t n_threads_batch;
    int ctx_type;
    int rope_scaling_type;
    int pooling_type;
    int attention_type;
    int flash_attn_type;
    float rope_freq_base;
    float rope_freq_scale;
    float yarn_ext_factor;
    float yarn_attn_factor;
    float yarn_beta_fast;
    float yarn_beta_slow;
    uint32_t yarn_orig_ctx;
    float defrag_thold;
    eval_callback cb_eval;
    void * cb_eval_user_data;
    int type_k;
    int type_v;
    size_t moe_cache_size;
    void * abort_callback;
    void * abort_callback_data;
    bool embeddings;
    bool offload_kqv;
    bool no_perf;
    bool op_offload;
    bool swa_full;
    bool kv_unified;
    void * samplers;
    size_t n_samplers;
    void * ctx_other;
};

struct llama_sampler_chain_params { bool no_perf; };

struct llama_batch {
    int32_t n_tokens;
    llama_token * token;
    float * embd;
    llama_pos * pos;
    int32_t * n_seq_id;
    llama_seq_id ** seq_id;
    int8_t * logits;
};

struct llama_token_data { llama_token id; float logit; float p; };
struct llama_token_data_array { struct llama_token_data * data; size_t size; int64_t selected; bool sorted; };

const char * llama_version(void);
const char * ggml_version(void);
const char * llama_print_system_info(void);
struct llama_model_params llama_model_default_params(void);
struct llama_context_params llama_context_default_params(void);
struct llama_sampler_chain_params llama_sampler_chain_default_params(void);
void llama_backend_init(void);
void llama_log_set(log_callback callback, void * user_data);
void * llama_model_load_from_file(const char * path, struct llama_model_params params);
void llama_model_free(void * model);
void * llama_init_from_model(void * model, struct llama_context_params params);
void llama_free(void * ctx);
uint32_t llama_n_ctx(const void * ctx);
uint32_t llama_n_ubatch(const void * ctx);
int32_t llama_model_n_ctx_train(const void * model);
bool llama_model_has_encoder(const void * model);
bool llama_model_is_recurrent(const void * model);
const void * llama_model_get_vocab(const void * model);
int32_t llama_vocab_n_tokens(const void * vocab);
bool llama_vocab_is_eog(const void * vocab, llama_token token);
int32_t llama_tokenize(const void * vocab, const char * text, int32_t text_len, llama_token * tokens,
                       int32_t n_tokens_max, bool add_special, bool parse_special);
int32_t llama_token_to_piece(const void * vocab, llama_token token, char * buf, int32_t length, int32_t lstrip,
                             bool special);
int32_t llama_decode(void * ctx, struct llama_batch batch);
void * llama_get_memory(const void * ctx);
bool llama_memory_seq_rm(void * memory, llama_seq_id seq_id, llama_pos p0, llama_pos p1);
float * llama_get_logits_ith(void * ctx, int32_t i);
const char * ggml_op_name(int op);
void ggml_backend_tensor_get(const struct ggml_tensor * tensor, void * data, size_t offset, size_t size);
void ggml_backend_tensor_set(struct ggml_tensor * tensor, const void * data, size_t offset, size_t size);

void * llama_sampler_chain_init(struct llama_sampler_chain_params params);
void llama_sampler_chain_add(void * chain, void * sampler);
void * llama_sampler_chain_get(void * chain, int32_t i);
int32_t llama_sampler_chain_n(const void * chain);
const char * llama_sampler_name(const void * sampler);
void llama_sampler_apply(void * sampler, struct llama_token_data_array * candidates);
void llama_sampler_accept(void * sampler, llama_token token);
void llama_sampler_free(void * sampler);
void * llama_sampler_init_greedy(void);
void * llama_sampler_init_dist(uint32_t seed);
void * llama_sampler_init_top_k(int32_t k);
void * llama_sampler_init_top_p(float p, size_t min_keep);
void * llama_sampler_init_min_p(float p, size_t min_keep);
void * llama_sampler_init_temp(float t);
"""

DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "llama_model_default_params": {
        **dict.fromkeys(("n_gpu_layers", "load_mode"), -1),
        **{"split_mode": 1, "lazy_mode": 1, "main_gpu": 0, "use_extra_bufts": 1},
        **dict.fromkeys(("vocab_only", "check_tensors", "no_host", "no_alloc", "load_mtp"), 0),
    },
    "llama_context_default_params": {
        **{"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_rs_seq": 0, "n_outputs_max": 0},
        **{"n_outputs_max_per_seq": 1, "n_threads": 4, "n_threads_batch": 4, "ctx_type": 0},
        **dict.fromkeys(("rope_scaling_type", "pooling_type", "attention_type", "flash_attn_type"), -1),
        **dict.fromkeys(("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow"), -1.0),
        **{"rope_freq_base": 0, "rope_freq_scale": 0, "yarn_orig_ctx": 0, "defrag_thold": -1.0},
        **{"type_k": 1, "type_v": 1, "moe_cache_size": 0, "n_samplers": 0},
        **{"embeddings": 0, "offload_kqv": 1, "no_perf": 1, "op_offload": 1, "swa_full": 1, "kv_unified": 0},
    },
}
"""What the two functions fill in, by the source of those builds: another layout puts other numbers there."""

POINTERS: Mapping[str, tuple[str, ...]] = {
    "llama_model_default_params": (
        *("devices", "tensor_buft_overrides", "tensor_split", "progress_callback", "kv_overrides"),
    ),
    "llama_context_default_params": ("cb_eval", "cb_eval_user_data", "abort_callback", "samplers", "ctx_other"),
}
"""Pointers that they leave empty."""

FIELD = re.compile(r"^    \w+ (?P<name>\w+);\n", re.MULTILINE)
"""A field of a struct that is a number."""


def declarations(build: str) -> str:
    """Those of a build."""
    lacks = BUILDS[build]
    return FIELD.sub(lambda match: "" if match["name"] in lacks else match[0], DECLARATIONS)


def defaults(build: str) -> dict[str, dict[str, float]]:
    """What the two functions of a build fill in."""
    lacks = BUILDS[build]
    return {
        function: {name: number for name, number in numbers.items() if name not in lacks}
        for function, numbers in DEFAULTS.items()
    }
