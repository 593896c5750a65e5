/* llama.cpp's eval callback for a graph that is known: which nodes are wanted, and copies of them.

   The same as `Taps._called` with a plan (`plan.py`), which does it where there is no C compiler. Whatever is not as the
   plan has it goes there. */

/* The values of a strided tensor, one after the other: `dense` in plan.py. */
static void gather(const struct tracekit_copy * copy, const char * from, char * to) {
    for (int64_t c = 0; c < copy->ne[3]; c++) {
        for (int64_t b = 0; b < copy->ne[2]; b++) {
            for (int64_t a = 0; a < copy->ne[1]; a++) {
                const char * value = from + c * copy->nb[3] + b * copy->nb[2] + a * copy->nb[1];
                for (int64_t i = 0; i < copy->ne[0]; i++, value += copy->nb[0], to += copy->item) {
                    memcpy(to, value, copy->item);
                }
            }
        }
    }
}

/* False, and nothing copied, where a tensor is no longer of the shape that it was. */
static bool take(const struct tracekit_state * state, int32_t node) {
    const struct tracekit_plan * plan = state->plan;
    const struct tracekit_copy * first = plan->copies + plan->copied[node], * end = plan->copies + plan->copied[node + 1];
    for (const struct tracekit_copy * copy = first; copy < end; copy++) {
        if (memcmp(copy->tensor->ne, copy->ne, sizeof copy->ne) || memcmp(copy->tensor->nb, copy->nb, sizeof copy->nb)) {
            return false;
        }
    }
    for (const struct tracekit_copy * copy = first; copy < end; copy++) {
        if (copy->in_order) {
            state->get(copy->tensor, state->arena + copy->first, 0, copy->size);
        } else {
            state->get(copy->tensor, state->scratch, 0, copy->whole);
            gather(copy, state->scratch, state->arena + copy->first);
        }
    }
    return true;
}

bool tracekit_follow(struct ggml_tensor * node, bool ask, void * given) {
    struct tracekit_state * state = given;
    const struct tracekit_plan * plan = state->plan;
    int32_t place = state->place;
    if (plan == NULL) {
        return state->other(node, ask, given);
    }
    if (!ask) {
        return take(state, place - 1) || state->other(node, ask, given);
    }
    if (place == plan->count || node != plan->nodes[place] || node->op != plan->operations[place]) {
        return state->other(node, ask, given);
    }
    state->place = place + 1;
    return plan->copied[place + 1] > plan->copied[place];
}
