/* What of a graph is copied, and how far its computation is: read by the C compiler and by cffi, after the structs of
   `declarations.py`. */

typedef void (*get_function)(const struct ggml_tensor * tensor, void * data, size_t offset, size_t size);

struct tracekit_copy {
    const struct ggml_tensor * tensor;
    int64_t ne[4];  /* ggml's sides and strides when the plan was made */
    size_t nb[4];
    bool in_order;  /* whether its values lie one after the other */
    size_t first;   /* where its bytes go in the arena */
    size_t size;    /* bytes of its values */
    size_t whole;   /* bytes from the first value to the end of the last */
    size_t item;    /* bytes of a value */
};

struct tracekit_plan {
    int32_t count;                        /* of nodes */
    struct ggml_tensor * const * nodes;   /* in the order of asking */
    const int * operations;
    const int32_t * copied;               /* `copies` from copied[i] to copied[i + 1] are made after node i */
    const struct tracekit_copy * copies;
};

struct tracekit_state {
    const struct tracekit_plan * plan;    /* of the graph that is computed; NULL where there is none */
    int32_t place;                        /* in the plan: the node that is asked for next */
    char * arena;
    char * scratch;                       /* as large as the largest `whole` */
    get_function get;
    eval_callback other;                  /* answers what is not as the plan has it */
};

bool tracekit_follow(struct ggml_tensor * node, bool ask, void * state);
