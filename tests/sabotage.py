"""Breaks one line at a time and asks the tests: a mutation that no test notices is a hole in them.

    python tests/sabotage.py [WORD]     (all of them, or those whose names have the word; not part of the suite)

Works on a copy; prints one line for each mutation and ends with status 1 if any was missed."""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutation:
    """In `file` under src/understudy, the line `old` becomes `new`; `tests` should fail."""

    what: str
    file: str
    old: str
    new: str
    tests: str


JOBS = "tests/jobs/test_ledger.py tests/jobs/test_records.py"
CORE = "tests/test_tree.py tests/test_verify.py tests/test_cache.py"
BITS = "tests/models/test_bits.py"
LLM = "tests/test_llm.py"
CONTRACTS = "tests/test_contracts.py"
GUESS, BEAM, GRAPHS = "tests/drafters/test_suggest.py", "tests/drafters/test_device_search.py", "tests/devices/test_graphs.py"
PACE = "tests/drafters/test_pace.py"
AHEAD = "tests/drafters/test_ahead.py"
SEARCH_KERNELS = "tests/drafters/test_kernel_search.py"
HEAD_SUGGEST = "tests/drafters/test_head_suggest.py"
DEVICE_GUESSES, FILTERS = "tests/drafters/test_device_guesses.py", "tests/kernels/gpu/test_filters.py"
READING = "tests/test_reading.py"
LOOP = "tests/test_batch.py tests/test_engine.py tests/test_scheduler.py"
STATS, ROUTE, FILE = "tests/test_stats.py", "tests/tiers/test_route.py", "tests/tiers/test_file.py"
FORMAT, PACKED = "tests/kernels/test_residual_bits.py", "tests/kernels/test_residual_packed.py"
MAMBA = "tests/models/test_mamba.py"
MTP = "tests/heads/formats/test_mtp.py"
RECURRENCE = "tests/kernels/test_recurrence_cpu.py"
FITTING = "tests/kernels/test_fitting.py tests/kernels/test_fitting_rows.py tests/quantizers/test_inputs.py"
LOGPROBS = "tests/test_logprobs.py"
FIELDS = "tests/server/test_fields.py"
ADJUST = "tests/test_adjust.py"
GRAMMAR = "tests/test_grammar.py"
RECTANGLE = "tests/test_rectangle.py tests/policies"
PREFIXES = "tests/prefixes/test_files.py tests/prefixes/test_disk.py"
HEADS = "tests/drafters/test_head_state.py tests/drafters/test_head_runner.py tests/drafters/test_head_proposer.py"
SEVERAL = "tests/server/test_models.py"
PAGE = "tests/server/test_page.py"
MUTATIONS = (
    Mutation("weights are downloaded that no index names", "weights/hub.py", "if file not in weights or file.name in needed", "if True", "tests/frontends/test_pull.py"),
    Mutation("a file of options wins over the command line", "frontends/config_file.py", "words += [] if known[key].dest in given else own", "words += own", "tests/frontends/test_config_file.py"),
    Mutation("a model is deleted while it is used", "weights/holding.py", "fcntl.flock(file, fcntl.LOCK_SH)", "pass", "tests/weights/test_holding.py"),
    Mutation("a Store of a changed checkpoint is well", "inventory.py", "        trouble = CHANGED\n    return", "        pass\n    return", "tests/test_inventory.py"),
    Mutation("a model is unloaded while it is used", "server/models.py", "while wanted.waiting and any(place.users for place in leaving):", "while False:", SEVERAL),
    Mutation("a model in use never makes way", "server/models.py", "place.closed = place.closed or left <= 0", "pass", SEVERAL),
    Mutation("a model is loaded beside others that leave it too little", "shelf.py", "return same and not plan.streamed_bytes", "return True", "tests/test_shelf.py"),
    Mutation("a client that waits for its model is told nothing", "server/pending.py", "            yield beginning.alive()\n", "            pass\n", SEVERAL),
    Mutation("the exact model's own token counts as guessed", "api/origins.py", "place < step.accepted", "place <= step.accepted", "tests/api/test_origins.py"),
    Mutation("text that was held back belongs to the newest token", "api/origins.py", "self._reply.ends[self._token] <= at", "self._token < last", "tests/api/test_origins.py"),
    Mutation("a server with a page asks nobody for a key", "server/guards.py", "(self.settings.page and path in PAGE)", "self.settings.page", PAGE),
    Mutation("a page may run what a model writes", "server/page.py", "script-src 'self'", "script-src 'self' 'unsafe-inline'", PAGE),
    Mutation("a path that breaks a grammar is gone on with", "grammar.py", "return read == len(rest)", "return True", GRAMMAR),
    Mutation("what is spilled is read from another place", "spilled.py", "position - FIRST) * self", "position) * self", "tests/test_spilled.py"),
    Mutation("tokens that leave memory are not written", "spilled.py", "for start in range(0, moved, STEP):", "for start in range(0, 0, STEP):", "tests/test_spilled.py"),
    Mutation("a draft of a spilled text looks at other places", "spilled.py", "shifted = nodes.slots - bases,", "shifted = nodes.slots,", "tests/test_spilled.py"),
    Mutation("a chunk from the file is taken for the first one", "kernels/spilled_attention.py", "_Segment(chunk, 0,", "_Segment(FIRST, 0,", "tests/kernels/test_spilled_attention.py"),
    Mutation("a disk without room is not noticed at load", "tiers/spill.py", "os.posix_fallocate(descriptor, 0, nbytes)", "os.ftruncate(descriptor, nbytes)", "tests/tiers/test_spill.py"),
    Mutation("an end mark is allowed within a form", "grammar.py", "~self._packed(ends)", "~self._packed(())", GRAMMAR),
    Mutation("a matcher does not roll back", "grammar.py", "self._matcher.rollback(len(self._path) - shared)", "pass", GRAMMAR),
    Mutation("tokens that no tokenizer knows leak through a mask", "grammar_compiler.py", "max(vocabulary, len(tokenizer))", "len(tokenizer)", GRAMMAR),
    Mutation("every node is masked as the first one", "adjust.py", "grammar.allowed(path)", "grammar.allowed([])", "tests/test_constrained.py"),
    Mutation("a node is forced as the end of the text is", "reasoning.py", "return self._due(self._at(tuple(path)))", "return self._due(self._at(()))", "tests/test_reasoning.py"),
    Mutation("a mark is forced within a character", "reasoning.py", "_cut(place.tail)", "False", "tests/test_reasoning.py"),
    Mutation("marks have log-probabilities among a message's", "api/told_logprobs.py", "if end > start or begin == end == start:", "if True:", "tests/server/test_responses.py"),
    Mutation("a text goes on after its form is complete", "making.py", "return reply.feed(token) or complete", "return reply.feed(token)", "tests/test_constrained.py"),
    Mutation("a lane's outputs are put where the first device's belong", "models/lanes.py", "start = portion.first * BLOCK", "start = 0", "tests/models/test_lanes.py"),
    Mutation("a pass that is left goes on in a lane", "models/lanes.py", "self._each(Supply.abandon)", "self.first.abandon()", "tests/models/test_lanes.py"),
    Mutation("streams of several devices do not end together", "plan/lanes.py", "streamed = seconds * self.link", "streamed = seconds", "tests/plan/test_lanes.py"),
    Mutation("a command plans with what another program may hold", "devices/processor.py", "if not startup.owned():", "if True:", "tests/devices/test_processor.py"),
    Mutation("a model is prepared that memory does not hold", "plan/machine.py", "if (spare := spare_bytes()) < needed:", "if (spare := spare_bytes()) < 0:", "tests/test_loading.py"),
    Mutation("a turn begins that its context ends", "room.py", "if tokens + least > self.context:", "if tokens > self.context:", "tests/test_room.py"),
    Mutation("memory is looked at for the newest text alone", "admission.py", "self.lacking([*others, sequence])", "self.lacking([sequence])", "tests/test_admission.py"),
    Mutation("a text begins that memory does not hold any more", "room.py", "if (free := short(needed)) is None:\n            return \"\"", "if True:\n            return \"\"", "tests/test_admission.py"),
    Mutation("a proof begins that memory does not hold", "models/proof.py", "    check_spare(PROVING, ", "    check_spare(0, ", "tests/models/test_proof.py"),
    Mutation("a Store that is there is foretold", "drawable.py", "if store is not None and as_it_is:", "if False:", "tests/test_drawable.py"),
    Mutation("trees take no memory", "plan/memory.py", "return min(max(nodes, recorded), request.scratch)", "return 0", "tests/plan/test_memory.py"),
    Mutation("a turn begins that memory does not hold", "room.py", "if not needed or needed <= (free := spare_bytes()):", "if not needed or (free := spare_bytes()):", "tests/test_room.py"),
    Mutation("a limit is taken for decoding that is the product's", "diagnosis.py", "rebuilt_rate=arithmetic.plain_rate))", "rebuilt_rate=arithmetic.rebuilt_rate))", "tests/test_diagnosis.py"),
    Mutation("what a bench measures is not kept", "plan/remembered.py", "        fresh.replace(path)\n", "        pass\n", "tests/frontends/test_doctor.py"),
    Mutation("a command imports torch's compiler", "startup.py", "sys.meta_path.insert(0, finder)", "sys.meta_path.append(finder)", "tests/test_startup.py"),
    Mutation("half of a library stays when it is imported again", "startup.py", "        del sys.modules[name]\n", "        pass\n", "tests/test_startup.py"),
    Mutation("a Store is taken that does not fit", "stores.py", "if ceiling is None or chosen or ceiling.holds(", "if True or ceiling.holds(", "tests/test_sources.py"),
    Mutation("a head is compared with the target's features one token too early", "training/losses.py", "teacher = shifted(batch.features, guess.depth + 1)", "teacher = shifted(batch.features, guess.depth)", "tests/training/test_losses.py"),
    Mutation("the gradient of a soft loss forgets what was wanted", "training/losses.py", "ctx.gradient = said.exp_().sub_(wanted)", "ctx.gradient = said.exp_()", "tests/training/test_losses.py"),
    Mutation("of a head that is trained in chunks, the last chunk alone counts", "training/losses.py", "return torch.stack(there).sum(0) if there else None", "return there[-1] if there else None", "tests/training/test_losses.py"),
    Mutation("layers that a head grows disturb it at first", "training/grow.py", "layers.add_nothing(start.config.layers)", "layers.add_nothing(head.config.layers)", "tests/training/test_grow.py"),
    Mutation("places of one text count as if they were of several", "training/judge.py", "counts[group, 0] = whole.sum(1)", "counts[group, 0] = whole.sum()", "tests/training/test_judge.py"),
    Mutation("a head goes on from a prefix that it does not know", "engine.py", "self.cache.rewind(sequence.row, self.drafter.reach(sequence.row, length))", "pass", "tests/drafters/test_own_cache.py"),
    Mutation("a head takes what another one kept", "prefixes/disk.py", 'f"{self.identity} {identity}", skipped))', "self.identity, skipped))", "tests/drafters/test_own_cache.py"),
    Mutation("nodes of a chain do not see one another in training", "training/chains.py", "mask = torch.cat([mask, own], 1)", "mask = torch.cat([mask, ~own & False], 1)", "tests/training/test_chains.py"),
    Mutation("a training goes on without what AdamW kept", "training/checkpoints.py", '{moment: tensors[key].to(weight.device) for moment, key in kept.items()}', "{moment: torch.zeros_like(tensors[key]) for moment, key in kept.items()}", "tests/training/test_run.py"),
    Mutation("a head is given the state at its own token", "drafters/head_state.py", "known.hidden[first - 1 - known.first :][: len(tokens)]", "known.hidden[max(first - 2 - known.first, 0) :][: len(tokens)]", HEADS),
    Mutation("a head keeps a token that a text has lost", "drafters/head_state.py", "self.cache.rewind(row, min(self.cache.lengths[row], max(length - 1, 0)))", "self.cache.rewind(row, min(self.cache.lengths[row], length))", HEADS),
    Mutation("a head goes on without the state it needs", "drafters/head_state.py", "return min(length - 1, max(", "return min(length, max(", HEADS),
    Mutation("a head's keys lie where the target's do", "drafters/head_runner.py", "slots=nodes.slots - 1", "slots=nodes.slots", HEADS),
    Mutation("a head's tokens are taken for the target's", "drafters/head_runner.py", "whole[:, self.head.token_map] = logits", "whole[:, : logits.shape[1]] = logits", HEADS),
    Mutation("a node's state is made of the root's", "drafters/head_proposer.py", "self.states[nodes.rows, nodes.parents % PLACES], depth)", "self.states[nodes.rows, self.roots[nodes.rows] % PLACES], depth)", HEADS),
    Mutation("a head of another kind drafts", "drafters/trained.py", "if found.config.kind != self.kind:", "if False:", "tests/drafters/test_trained.py"),
    Mutation("what lies before the norm is what comes before the last block", "models/taps.py", "block = blocks[-1] if place == BEFORE_NORM", "block = blocks[-2] if place == BEFORE_NORM", "tests/models/test_taps.py"),
    Mutation(
        "EAGLE joins a hidden state and an embedding the other way round",
        "heads/eagle.py",
        "torch.cat([embedded, before], -1)",
        "torch.cat([before, embedded], -1)",
        "tests/heads/test_eagle.py",
    ),
    Mutation(
        "Clover adds values whole, as a softmax over one key would",
        "heads/clover.py",
        "(gate[..., None] * value)",
        "(gate[..., None].abs().clamp(1) * value)",
        "tests/heads/test_clover.py",
    ),
    Mutation(
        "EAGLE-3's residual is another than its config says",
        "heads/eagle3.py",
        "normed if self.norm_before_residual else hidden",
        "hidden if self.norm_before_residual else normed",
        "tests/heads/test_eagle3.py",
    ),
    Mutation(
        "hidden states of EAGLE-3 are taken one layer too early",
        "heads/formats/eagle3.py",
        "tuple(number + 1 for number in numbers)",
        "tuple(number for number in numbers)",
        "tests/heads/formats/test_eagle3.py",
    ),
    Mutation(
        "a head with NaN is loaded",
        "heads/files.py",
        "if tensor.is_floating_point() and not bool(tensor.isfinite().all())",
        "if tensor.is_floating_point() and tensor.dim() > 9",
        "tests/heads/test_files.py",
    ),
    Mutation("many nodes that a head in front begins with are one step", "drafters/head_suggest.py", "rows <= FEW * len(going)", "True", HEAD_SUGGEST),
    Mutation("a head in front is not measured before the first draft", "drafters/substitute.py", "        made.measure()\n", "", HEAD_SUGGEST),
    Mutation("a step of a head in front takes what reading took", "drafters/head_suggest.py", "device.finish()\n        start = time.perf_counter()", "device.finish()\n        start = 0.0", HEAD_SUGGEST),
    Mutation("a window may begin within what is tidied", "detokenizer.py", "if not self._traits.tidied:\n            return True\n        return _tidy", "if self._traits.tidied:\n            return True\n        return _tidy", "tests/test_detokenizer.py"),
    Mutation("others are expected where levels take chains", "drafters/head_suggest.py", "self.checks_others = proposer.device.drafts_see_text", "self.checks_others = True", "tests/drafters/test_device_guesses.py"),
    Mutation("a head's own output has as few bits as the rest of it", "heads/held.py", "max(bits, OUTPUT_BITS) if", "bits if", "tests/heads/test_held.py"),
    Mutation("a matrix of few bits forgets its bias", "heads/held.py", "return y if self.bias is None else y + self.bias", "return y", "tests/heads"),
    Mutation("a head of few bits is counted as a whole one", "drafters/trained.py", "tensor_bytes(head, dtype, bits)", "tensor_bytes(head, dtype, 16)", "tests/drafters/test_trained.py"),
    Mutation("a head is held whole whatever is asked for", "drafters/trained.py", "device.where, bits, device", "device.where, 16, device", "tests/drafters/test_trained.py"),
    Mutation("pieces of a weight are put at its beginning", "quantizers/__init__.py", "first += blocks", "first += 0", "tests/quantizers/test_contract.py"),
    Mutation("rows of a tensor forget what a chunk had left", "heads/tensors.py", "chunk, filled = chunk[some:], filled + some", "chunk, filled = chunk[:0], filled + some", "tests/heads/test_tensors.py"),
    Mutation("siblings count for a penalty", "tree.py", "else [*found[parent], token]", "else [*found[-1], token]", ADJUST),
    Mutation("a bias counts twice", "sampling.py", "piece if adjust is None else adjust(piece, start)", "piece if adjust is None else 2 * adjust(piece, start) - piece", ADJUST),
    Mutation("a piece is adjusted as the first one", "batch.py", "self.adjustment and self.adjustment.after(first), chooser)", "self.adjustment and self.adjustment.after(0), chooser)", ADJUST),
    Mutation("a prompt is scored from where its row's text ends", "making.py", "None if params.prompt_logprobs is None else 0", "None", LOGPROBS),
    Mutation("a stream forgets the log-probabilities of a prompt", "api/answers.py", "step.prompt_logprobs if self.body.scores_prompt else None", "None", FIELDS),
    Mutation("log-probabilities lag behind", "batch.py", "[len(self.known)] if self.reads", "[0] if self.reads", LOGPROBS),
    Mutation("a prompt's log-probabilities take more room than planned", "batch.py", "self.tile * tiles - first % self.tile", "self.tile * tiles", LOGPROBS),
    Mutation("the prompt counts for every penalty", "sequence.py", "+ (place >= self.prompt_length)", "+ 1", ADJUST),
    Mutation("a text may end one token early", "adjust.py", "if len(path) < missing:", "if len(path) < missing - 1:", ADJUST),
    Mutation("levels on a device know nothing of penalties", "drafters/device_search.py", "if kind.adjusted and self.adjustment is not None:", "if False:", BEAM),
    Mutation("a path on a device ends before its node", "drafters/device_adjust.py", "torch.where(place < depth, taken[WHAT][:, None], -1)", "-1", BEAM),
    Mutation("drafts know nothing of penalties", "drafters/tree_search.py", "nodes.positions.to(logits.device) + 1, RANKS, adjust)", "nodes.positions.to(logits.device) + 1, RANKS)", "tests/test_penalties.py"),
    Mutation("fitting takes what does not help", "kernels/fitting_rows.py", 'fcmp_ordered("<", after, before)', 'fcmp_ordered(">", after, before)', FITTING),
    Mutation("what is compiled already is compiled ahead", "models/compile_ahead.py", "each.missing]", "True]", "tests/models/test_compile_ahead.py"),
    Mutation("the next weight waits for the one that is written", "weights/building.py", "pieces = in_order(self.pool, self.ahead, self._pieces(wanted))", "pieces = in_order(self.pool, 1, self._pieces(wanted))", "tests/weights/test_building.py"),
    Mutation("other groups' errors do not count", "kernels/fitting_rows.py", "target = b.fsub(exact, others)", "target = exact", FITTING),
    Mutation("V' e stays as it was when a row gets better", "kernels/fitting_rows.py", "self.given(r, trial)), total)", "self.given(r)), total)", FITTING),
    Mutation("a third bit of a code is packed where another row's belongs", "kernels/codes.py", "third, self.all(eight, p)", "third, self.all(eight, p ^ 1)", "tests/kernels/test_quantising.py tests/kernels/test_pack.py"),
    Mutation("a text is read as far ahead as it likes", "weights/measuring.py", "self._starts[index] - self._asked < self._lead", "True", "tests/weights/test_measuring.py"),
    Mutation("zeros up to the end of a page are what was there", "weights/writing.py", "self._room[count:whole] = bytes(whole - count)", "pass", "tests/weights/test_writing.py"),
    Mutation("long extents go through the page cache", "weights/writing.py", "while view and count >= LONG and self._direct is not None:", "while False:", "tests/weights/test_writing.py"),
    Mutation("directions are counted twice", "quantizers/inputs.py", "squares - directions.square().sum(1), LEAST", "squares, LEAST", FITTING),
    Mutation("siblings see each other", "tree.py", "off = tree.ancestors & ~straight", "off = (tree.ancestors | True) & ~straight", CORE),
    Mutation("a node does not see itself", "tree.py", "reach = torch.eye(n", "reach = torch.zeros(n, n", CORE),
    Mutation("prefix one too long", "tree.py", "tree.depths + 1 - counts, tail", "tree.depths + 2 - counts, tail", CORE),
    Mutation("a wrong node is accepted", "verify.py", "wrong = choices[tree.parents.clamp(min=0)] != tree.tokens", "wrong = choices[tree.parents.clamp(min=0)] > tree.tokens", CORE),
    Mutation("machine code of two signatures is kept in one file", "kernels/code_cache.py", "sha256(repr(key).encode())", "sha256()", "tests/kernels/test_code_cache.py"),
    Mutation("functions of one factory have one name", "kernels/compiled.py", "function.__qualname__ += str(made_of)", "function.__qualname__ += str()", "tests/kernels/test_compiled.py"),
    Mutation("machine code of other sources is used", "kernels/compiled.py", "removesuffix(mark) + mark", "removesuffix(mark)", "tests/kernels/test_compiled.py"),
    Mutation("sums of 16 bits take more codes than fit", "kernels/unpacked_dot.py", "fit = 32767 //", "fit = 65535 //", "tests/kernels/test_unpacked_dot.py"),
    Mutation("outputs of unpacked codes stay where they lie", "kernels/unpacked_dot.py", "self.store(part, self.at(row, 4 * first), 4)", "pass", "tests/kernels/test_row_tiles.py"),
    Mutation("rows of the second tile are those of the first", "kernels/row_tiles.py", "four(codes, x + r * columns, columns,", "four(codes, x, columns,", "tests/kernels/test_row_tiles.py"),
    Mutation("rows of another run are multiplied", "kernels/exact_product.py", "x = run.x + k // run.width * run.run_bytes", "x = run.x + k * 2", "tests/kernels/test_exact_product.py"),
    Mutation("a single node is written to the first row", "models/streamed.py", "return int(nodes.rows[0]), int(nodes.slots[0])", "return 0, int(nodes.slots[0])", "tests/models/test_target.py tests/test_llm.py"),
    Mutation("rows that lie apart are taken for neighbours", "kernels/exact_product.py", "row_bytes, run_bytes = self.columns * 2, width * 2", "row_bytes, run_bytes = width * 2, width * 2", "tests/kernels/test_exact_product.py"),
    Mutation("room is spent on decoded weights twice", "plan/residents.py", "if owners[number] not in decoded),", "),", "tests/plan/test_residents.py"),
    Mutation("on a GPU a lane's second octet takes the bits of its first", "kernels/gpu/octets.py", "windows[plane] >> byte_of(counts[0], counts[1], plane)", "windows[plane]", "tests/kernels/gpu/test_residual.py"),
    Mutation("an exception is not put back", "kernels/residual.py", "weights[exceptions[e, 0]] = exceptions[e, 1]", "pass", "tests/codecs"),
    Mutation("the path is not moved", "layer_states.py", "slab.index_copy_(1, to, slab", "slab.index_copy_(1, source, slab", CORE),
    Mutation("a layer that slides goes back to what it lost", "layer_states.py", "return length if oldest_wanted >= oldest_held else 0", "return length", CORE),
    Mutation("what a chunk overwrote is forgotten", "cache.py", "self._written[row] = max(self._highest(row), end)", "pass", CORE),
    Mutation("a layer reads another layer's keys", "models/shape.py", "own = {kind: index for index, kind in enumerate(kinds[: max(first, 0)])}", "own = {kind: kinds.index(kind) for kind in kinds}", "tests/models/test_shape.py"),
    Mutation("a second table is not looked up", "models/embedding.py", "for table in beside:", "for table in beside[:0]:", "tests/models/test_embedding.py"),
    Mutation("a token that a second table lacks has its last row", "models/embedding.py", "torch.where(tokens < table.rows, tokens, 0)", "tokens.clamp(max=table.rows - 1)", "tests/models/test_embedding.py"),
    Mutation("a second table is held", "models/structure.py", "for path in (*order, *aside)}", "for path in (*order, embedding)}", "tests/models/test_embedding.py"),
    Mutation("a second table takes no room", "models/footprint.py", "sum(rows * width for rows, width in sizes.tables)", "sizes.tables[0][0] * sizes.tables[0][1]", "tests/models/test_footprint.py"),
    Mutation("keys that a later layer reads are overwritten", "layer_states.py", "if self.window and not self.shared else 0", "if self.window else 0", BITS),
    Mutation("what others read is counted again", "layer_states.py", "if self.reads is None else 0", "", "tests/models/test_shape.py tests/models/test_footprint.py"),
    Mutation("the noise forgets the position", "sampling.py", "noise(places + offset(seed)", "noise(0 * places + offset(seed)", "tests/test_sampling.py"),
    Mutation("the kernel's noise forgets the position", "sampling.py", "keys = positions.to(torch.int64) + offset", "keys = 0 * positions + offset", "tests/kernels/test_likeliest.py"),
    Mutation("a token that may win gets no noise", "kernels/likeliest.py", "(z + np.float32(127.0))", "(z + np.float32(126.0))", "tests/kernels/test_likeliest.py"),
    Mutation("rounding may lose a token that wins", "kernels/likeliest.py", "bound + room + MARGIN_EACH * abs(part[i]))", "bound)", "tests/kernels/test_likeliest.py"),
    Mutation("the last of equal tokens wins", "kernels/likeliest.py", "values[place - 1] < value", "values[place - 1] <= value", "tests/kernels/test_likeliest.py"),
    Mutation("min-p is forgotten beside top-p", "kernels/likeliest.py", "            if scores[token] >= floor:", "            if True:", "tests/kernels/test_likeliest.py"),
    Mutation("a Store of other bits is taken", "sources.py", "not options.bits_left_open and textless", "False and textless", "tests/test_sources.py"),
    Mutation("draft and target use other noise", "drafters/tree_search.py", "nodes.positions.to(logits.device) + 1", "nodes.positions.to(logits.device)", LLM),
    Mutation("the window is one too wide", "kernels/attention_cpu.py", "low = max(0, position + 1 - window)", "low = max(0, position - window)", "tests/models/test_families.py"),
    Mutation("the softmax sees what lies beyond", "kernels/attention_cpu.py", "min(position, start + BLOCK - 1)", "start + BLOCK - 1", BITS),
    Mutation("a head takes another's sink", "kernels/attention_cpu.py", "sinks[first_query : first_query + group]", "sinks[:group]", "tests/kernels/test_attention.py"),
    Mutation("what came before a higher score does not fade", "kernels/attention_cpu.py", "if fades[r] != 1:", "if False:", "tests/kernels/test_attention.py"),
    Mutation("nodes that see part of a block go through it with others", "kernels/attention_amx.py", "if high - low < BLOCK - 1 or high >= prefix[end]:", "if high >= prefix[end]:", "tests/kernels/test_attention.py"),
    Mutation("what is not seen of a block is not made zero", "kernels/paired.py", "if position < limits[0] or position > limits[1]:", "if False:", "tests/kernels/test_paired.py"),
    Mutation("a block's keys are gathered beyond a row's places", "kernels/gathered.py", "and place + LANES <= places", "", "tests/kernels/test_gathered.py"),
    Mutation("wide tiles are taken for exact untried", "models/target.py", "apart = tiles_apart(self, self.untried, WIDE, TILE)", "apart = True", "tests/models/test_target.py"),
    Mutation("wide tiles leave their last nodes out", "models/target.py", "self.widest > TILE and start + self.widest <= nodes", "self.widest > TILE", "tests/models/test_target.py"),
    Mutation("low tiles are taken for exact untried", "models/narrow_tiles.py", "self.heights = apart(view, self.outputs, HEIGHTS, usual)", "self.heights = HEIGHTS", "tests/models/test_narrow_tiles.py"),
    Mutation("what is left over after whole vectors is not looked at", "models/narrow_tiles.py", "return made.numel() % WHOLE == 0", "return True", "tests/models/test_narrow_tiles.py"),
    Mutation("every pass shares what torch does", "models/target.py", "self.widest == WIDE and len(nodes) >= 2 * WIDE", "True", "tests/models/test_target.py"),
    Mutation("small tiles of a prompt share what torch does", "models/target.py", "if stock is not None and tiles[i].count == WIDE:", "if stock is not None:", "tests/models/test_target.py"),
    Mutation("a draft forgets the sinks", "kernels/draft_attention.py", "if spec.sinks is None:\n        return scores.softmax(-1)", "if True:\n        return scores.softmax(-1)", "tests/kernels/test_draft_attention.py"),
    Mutation("a record's own decay counts twice", "kernels/recurrence_cpu.py", "left[i] = _or_zero(product * behind)", "left[i] = _or_zero(product * behind * float32_at(decays)[path[i] * stride])", RECURRENCE),
    Mutation("a node reads a sibling's record", "kernels/recurrence_cpu.py", "slot = position if position < prefix[node] else", "slot = position if True else", RECURRENCE),
    Mutation("the wrong state is read", "kernels/recurrence_cpu.py", "(row * 2 + base % 2)", "(row * 2 + (base + 1) % 2)", RECURRENCE),
    Mutation("a fold forgets the state before", "kernels/recurrence_cpu.py", "after[c] = before[c] * whole", "after[c] = np.float32(0)", RECURRENCE),
    Mutation("a convolution takes a sibling's input", "kernels/convolution_cpu.py", "slot = position if position < prefix[node] else", "slot = position if True else", "tests/kernels/test_convolution_cpu.py"),
    Mutation("a step's length has no limits", "models/mamba.py", ".clamp(self.shortest, self.longest)", "", MAMBA),
    Mutation("multipliers are left out", "models/mamba.py", "* self.mup_vector", "", "tests/models/test_families.py"),
    Mutation("a feed-forward layer keeps keys", "models/shape.py", "0 if keeps_nothing else kv_heads", "kv_heads", MAMBA),
    Mutation("attention that a class computes itself is not seen", "models/attended.py", "self.watch.elsewhere.append(name)", "pass", "tests/models/test_attended.py"),
    Mutation("an MTP layer reads hidden states before the final norm", "heads/formats/mtp.py", "TAPS = (-1,)", "TAPS = (-2,)", "tests/drafters/test_mtp.py"),
    Mutation("an MTP layer joins the hidden state and the embedding in the wrong order", "heads/mtp.py", "torch.cat((self.embedding_norm(embedded), self.hidden_norm(hidden)), dim=-1)", "torch.cat((self.hidden_norm(hidden), self.embedding_norm(embedded)), dim=-1)", MTP),
    Mutation("a drafted token's MTP state is not normed", "heads/mtp.py", "self.norm(self.layers(self.join(joined), places))", "self.layers(self.join(joined), places)", MTP),
    Mutation("an MTP layer is of the kind of the model's first", "heads/formats/mtp.py", "return max(kinds, key", "return max(kinds[:1], key", MTP),
    Mutation("an MTP layer's experts are joined in another order", "heads/formats/mtp.py", "find.sources(own.replace(_INSIDE, inside, 1))", "find.sources(own.replace(_INSIDE, inside, 1))[::-1]", MTP),
    Mutation("what an expert of a head gives counts as much as any other", "heads/experts.py", "* top_k_weights.reshape(-1)[order, None].float()", "", "tests/heads/formats/test_mtp.py"),
    Mutation("a head's router is rounded", "heads/held.py", "return torch.float32 if head.in_float32(name, dtype) else dtype", "return dtype", MTP),
    Mutation("experts of a head are never held small", "heads/held.py", "if stack.outputs % BLOCK == 0:", "if False:", "tests/heads/test_experts.py"),
    Mutation("heads that the config does not tell of are passed over", "models/attended.py", "if found != (told.kv_heads, told.key_size, told.value_size):", "if False:", "tests/models/test_attended.py"),
    Mutation("a Linear with a forward of its own streams", "models/kept.py", "if type(module).forward is nn.Linear.forward:", "if True:", "tests/models/test_kept.py"),
    Mutation("what is held in float32 is rounded", "models/streamed.py", "kind = torch.float32 if any(map(in_float32, names)) else", "kind =", "tests/models/test_kept.py"),
    Mutation("logits that are no numbers choose a token", "sampling.py", "tokens, NO_TOKEN)[:, 0]", "tokens, tokens)[:, 0]", "tests/models/test_numbers.py"),
    Mutation("a request in trouble ends the others", "scheduler.py", "elif not isinstance(request.error, RequestError | RoomError):", "else:", LOOP),
    Mutation("a torn record stays", "jobs/ledger.py", "        os.ftruncate(self.file, whole)\n", "", JOBS),
    Mutation("a line is answered again after each stop", "jobs/ledger.py", "return bool(self.done[place])", "return False", JOBS),
    Mutation("an answer to an older line counts", "jobs/ledger.py", "if not self.index.says(place, record[\"id\"]):", "if False:", JOBS),
    Mutation("a custom_id stands twice", "jobs/ledger.py", "if len(twice):", "if False:", JOBS),
    Mutation("a fault of the machine is a line's record", "jobs/answering.py", "raise fault from None", "raise", "tests/jobs/test_run.py"),
    Mutation("a task that is cancelled keeps its place", "service.py", "if not request.finished:\n            self.llm.scheduler.cancel", "if False:\n            self.llm.scheduler.cancel", "tests/test_async_llm.py"),
    Mutation("closing ends the requests of others", "service.py", "if request in self._own]", "]", "tests/test_async_llm.py"),
    Mutation("results come in the order of their ends", "async_llm.py", "[found[place] for place in range(total)]", "list(found.values())", "tests/test_async_llm.py"),
    Mutation("a window lets everything in", "scheduler.py", "window - len(going)", "None", LOOP),
    Mutation("what is left when a batch fails goes on", "scheduler.py", "for request in going:\n                if not request.finished:", "for request in going[:0]:\n                if not request.finished:", LOOP),
    Mutation("a difference is not refused", "models/proof.py", "if not size < TOLERANCE:", "if False:", "tests/models/test_proof.py"),
    Mutation("a model is not proven", "sources.py", "    prove(config, options.cache)", "    pass", "tests/models/test_proof.py"),
    Mutation("tiles are not padded", "models/target.py", "self.padding = rows - self.count", "self.padding = 0", "tests/models/test_target.py"),
    Mutation("the bonus is dropped", "engine.py", "new = [*tree.tokens[path[1:]].tolist(), bonus]", "new = [*tree.tokens[path[1:]].tolist()] or [bonus]", LLM),
    Mutation("max_new_tokens is overshot", "sequence.py", "elif self.remaining <= 0:", "elif self.remaining < 0:", LLM),
    Mutation("a stop token does not cut", "engine.py", "return tokens[:count]", "return tokens", LLM),
    Mutation("a prefix is kept unseen", "engine.py", "common = common_prefix(own.tokens, sequence.to_share) if own", "common = min(len(own.tokens), len(sequence.to_share)) if own", "tests/test_reuse.py tests/test_engine.py"),
    Mutation("what is copied was not compared", "reuse.py", "length = common_prefix(tokens, text)\n        if", "length = min(len(tokens), len(text))\n        if", "tests/test_reuse.py"),
    Mutation("more is copied than layers can give", "reuse.py", "(reached := reach(row, length)) >", "(reached := length) >", "tests/test_reuse.py"),
    Mutation("a copy takes the draft's scratch for accepted tokens", "engine.py", "yield sequence.row, sequence.tokens[: self.cache.lengths[sequence.row]]", "yield sequence.row, sequence.tokens", "tests/test_reuse.py"),
    Mutation("a damaged prefix is taken", "prefixes/files.py", "if not _is_sealed(content):", "if False:", PREFIXES),
    Mutation("a damaged embedding is taken", "models/model.py", "self.store.prove(table)", "pass", "tests/models/test_embedding.py"),
    Mutation("another model's prefix is taken", "prefixes/files.py", 'return "" if {**told, "checksum": ""} == {**about, "checksum": ""} else', 'return "" if True else', PREFIXES),
    Mutation("a prefix's name forgets what came before", "prefixes/disk.py", "hashlib.sha256(before + block)", "hashlib.sha256(block)", PREFIXES),
    Mutation("a half-written prefix has its name", "prefixes/files.py", "with unfinished.open(", "with self.path(name).open(", PREFIXES),
    Mutation("what is used most goes", "prefixes/files.py", "key=lambda file: file.used", "key=lambda file: -file.used", PREFIXES),
    Mutation("a window from disk goes back to what was never there", "layer_states.py", "self.missing[row] = start", "pass", PREFIXES),
    Mutation("a prefix from disk goes on from the wrong state", "recurrent.py", "before = length // FOLD - 1\n        places = self._places(FOLD * before + torch.arange(FOLD))\n        records", "before = length // FOLD\n        places = self._places(FOLD * before + torch.arange(FOLD))\n        records", "tests/test_reuse.py"),
    Mutation("the place where texts part is not kept", "sequence.py", "self.pause - length if length < self.pause < length + count else count", "count", PREFIXES),
    Mutation("the type of keys does not matter to who reads them", "models/identity.py", '"type": str(model.dtype),', '"type": "",', "tests/models/test_identity.py"),
    Mutation("nobody waits for an equal prompt", "engine.py", "if not any(reads_for(self.cache, reader, sequence) for reader in readers):", "if True:", "tests/test_reuse.py"),
    Mutation("a second model forgets what was copied", "drafters/classic.py", "self.cache.copy(row, sequence.row, min(length, self.cache.lengths[row]))", "pass", "tests/test_reuse.py"),
    Mutation("an abandoned pass is not rewound", "models/model.py", "            self.supply.abandon()\n", "", LLM),
    Mutation("a part is read before it is here", "tiers/ring.py", "            slot.fetch.wait()", "            pass", f"tests/tiers {CONTRACTS}"),
    Mutation("a slot is refilled while it is read", "tiers/ring.py", "if not self._coming and not self._given:", "if not self._coming:", f"tests/tiers {CONTRACTS}"),
    Mutation("room of small parts is asked for in as many goes", "tiers/ring.py", "self._ahead < self.capacity // PLENTY", "self._ahead < self.capacity * PLENTY", "tests/tiers/test_ring.py"),
    Mutation("a moved operand reads where its bytes lay before", "kernels/exact_operand.py", "place + by)", "place)", "tests/kernels/test_exact_operand.py"),
    Mutation("plain weights stay where they lay before", "kernels/exact_product.py", "told.plain = operand.weights", "pass", "tests/models/test_exact_linear.py"),
    Mutation("a streamed part takes no time beside its bytes", "plan/rounds.py", "streamed * self.part_seconds", "0", "tests/plan/test_rounds.py"),
    Mutation("a second tile takes no time of its own", "plan/rounds.py", "math.ceil(nodes / plan.tile) - 1", "0", "tests/plan/test_rounds.py"),
    Mutation("shorter drafts have narrower levels than any that were seen", "plan/drafts.py", "levels=0, nodes=0, tokens=1)", "levels=0, level_nodes=0, nodes=0, tokens=1)", "tests/plan/test_drafts.py"),
    Mutation("a copy does not wait for the reader", "tiers/streams.py", "            self._device.await_event(self._stream, event)", "            pass", "tests/tiers"),
    Mutation("a reader does not wait for the copy", "tiers/streams.py", "        self._device.await_event(stream, self.arrived)", "        pass", "tests/tiers"),
    Mutation("a cancelled copy forgets whom it waited for", "tiers/pinned.py", "                self._consumed.extend(fetch.after)", "                pass", "tests/tiers"),
    Mutation("a buffer is filled while it is copied", "tiers/staging.py", "            self._device.block_until(copied)", "            pass", "tests/tiers"),
    Mutation("the checksum is not looked at", "weights/store.py", "if found != stored.checksum:", "if False:", CONTRACTS),
    Mutation("the second model keeps stale keys", "drafters/classic.py", "self.cache.rewind(sequence.row, min(length, self.cache.lengths[sequence.row]))", "pass", CONTRACTS),
    Mutation("drafts run past the budget", "drafters/growing_tree.py", "if c.depth < levels", "if c.depth < levels + 4", LLM),
    Mutation("trees are deeper than folded states reach", "drafters/search.py", "levels=min(proposer.deepest, target.cache.deepest)", "levels=proposer.deepest", "tests/models/test_hybrid.py"),
    Mutation("a recurrent row goes back where its state is gone", "recurrent.py", "self.newest[row] == 0 or length >= FOLD * self.newest[row]", "True", "tests/test_recurrent.py"),
    Mutation("a recurrent state is folded at once", "recurrent.py", "length + len(path) - LATE + FOLD", "length + len(path) + FOLD", "tests/test_recurrent.py"),
    Mutation("the end of a prompt is not saved", "engine.py", "self.cache.save(sequence.row)", "pass", "tests/models/test_hybrid.py"),
    Mutation("a guess stays that the draft does not say", "drafters/growing_tree.py", "if best is None or best.token != self.tokens[node]:", "if best is None:", GUESS),
    Mutation("a dropped guess stays", "drafters/growing_tree.py", "self.wrong.update(nodes)", "self.wrong.update(nodes[1:])", GUESS),
    Mutation("guesses run past the budget", "drafters/suggest.py", "tree.levels - 1 - candidate.depth", "tree.levels + 3 - candidate.depth", GUESS),
    Mutation("a level hands over hidden states in another order", "models/draft.py", "self.hidden[:, number] = states", "self.hidden[:, number] = states.flip(0)", "tests/models/test_taps.py"),
    Mutation("a head in front reads the hidden states of the node itself", "drafters/head_chain.py", "torch.cat(self.hidden)[self.read :", "torch.cat(self.hidden)[self.read - 1 :", HEAD_SUGGEST),
    Mutation("a head in front is asked whatever it takes", "drafters/pace.py", "return chance * self.cost(1) > self.step(texts) + self.cost(width + texts) - self.cost(width)", "return True", HEAD_SUGGEST),
    Mutation("a head in front chooses with the noise of another place", "drafters/head_suggest.py", "torch.tensor([chain.end + 1]", "torch.tensor([chain.end]", HEAD_SUGGEST),
    Mutation("an older place of the text wins", "kernels/choosing.py", "if size > best:", "if size >= best:", "tests/kernels/test_choosing.py"),
    Mutation("a level runs likely nodes and no likelier ones", "drafters/tree_search.py", "reverse=True)[most - 1]", "reverse=False)[most - 1]", "tests/drafters/test_tree_search.py"),
    Mutation("the text speaks for nothing", "drafters/tree_search.py", "score + bonus * (token == favoured)", "score", GUESS),
    Mutation("a miss says nothing", "drafters/pace.py", "self.missed += rank is None", "self.missed += 0", "tests/drafters/test_pace.py"),
    Mutation("a fast text makes the next one's drafts short", "drafters/pace.py", "if not self.rate or tokens / taken < self.rate:", "if not self.rate:", "tests/drafters/test_policy.py"),
    Mutation("inert nodes write where others lie", "drafters/device_search.py", "torch.where(valid, index, most), node", "index, node", BEAM),
    Mutation("children of stop tokens are drafted on the device", "drafters/device_search.py", "going = finite & ~stopped &", "going = finite &", BEAM),
    Mutation("a request's seed does not reach the device", "drafters/device_given.py", '"offset": offset(params.seed)', '"offset": offset(0)', f"{BEAM} {GRAPHS}"),
    Mutation("what is drafted ahead reads keys that the pass overwrites", "drafters/ahead.py", "self.search.prepare(origin, copies)", "self.search.prepare(origin, copies - len(tree.tokens))", AHEAD),
    Mutation("what was drafted ahead stays where it lay", "drafters/ahead.py", "flight.origin.slot + torch.tensor(kept)", "tree.length + torch.arange(len(kept))", AHEAD),
    Mutation("what was drafted ahead is used after any bonus token", "drafters/device_subtree.py", "(nodes[:, PARENT] == 0) & (nodes[:, TOKEN] == token)", "nodes[:, PARENT] == 0", f"{AHEAD} tests/drafters/test_device_subtree.py"),
    Mutation("a subtree's tails begin at the old root", "drafters/device_subtree.py", "tails[node, depths[node] - 1]", "tails[node, depths[node]]", f"{AHEAD} tests/drafters/test_device_subtree.py"),
    Mutation("in kernels what is taken stays a candidate", "kernels/gpu/search_level.py", "tl.store(node_chances + chance + RANKS, tl.full([P], -1.0, tl.float64), fresh & (parent >= 0))", "pass", SEARCH_KERNELS),
    Mutation("in kernels newer nodes go first of equally likely ones", "kernels/gpu/search_choice.py", "rows + row * EACH + child)", "rows + row * EACH + EACH - child)", SEARCH_KERNELS),
    Mutation("a tail forgets the node itself", "drafters/device_search.py", "tail = torch.where(at == (length + depth - first)[:, None], slots[:, None], tail)", "pass", BEAM),
    Mutation("in kernels a guess stays that the draft does not say", "kernels/gpu/search_level.py", "tl.minimum(held, agreed + 1)", "held", DEVICE_GUESSES),
    Mutation("in kernels a guess that stays is a candidate too", "kernels/gpu/search_level.py", "tl.where(taken, -1.0, chance)", "chance", DEVICE_GUESSES),
    Mutation("a guess stays on a device that the draft does not say", "drafters/device_guesses.py", "agreed[:, 0] + 1)", "agreed[:, 0] + 2)", DEVICE_GUESSES),
    Mutation("of equally likely tokens top-p keeps one too few", "kernels/gpu/filters.py", "found >= need", "found > need", FILTERS),
    Mutation("what was listed is always enough for a filter", "kernels/gpu/filters.py", "(drops & beyond)", "(drops & ~drops)", FILTERS),
    Mutation("a run of bytes is given out before it ends", "detokenizer.py", "(self._traits.runs and self._is_byte(token))", "False", "tests/test_detokenizer.py"),
    Mutation("half a character is given out", "detokenizer.py", "self._traits.halves and text.endswith(LOST)", "False", "tests/test_detokenizer.py"),
    Mutation("the file wins over what is given", "generation_config.py", "for name, value in self.values.items() if not params.gives(name)}\n        if self.max", "for name, value in self.values.items()}\n        if self.max", "tests/test_generation_config.py"),
    Mutation("a suggester may say too much", "drafters/tree_search.py", "suggestion.first(tip.most)", "suggestion", "tests/drafters/test_tree_search.py"),
    Mutation("hidden states of other nodes are handed out", "models/whole_pass.py", "self.hidden[:, number] = states[: self.count]", "self.hidden[:, number] = states[-self.count :]", "tests/models/test_taps.py"),
    Mutation("a prompt teaches the drafts", "drafters/search.py", "        if verified.drafted:", "        if True:", "tests/drafters/test_search.py"),
    Mutation("what the host read does not reach the device", "models/load.py", "places[number].copy_(room)", "pass", "tests/models/test_load.py"),
    Mutation("a single drafted node leaves no key", "cache.py", "self.layers[index].write_one(*place, keys[0], values[0])", "pass", "tests/models/test_draft.py"),
    Mutation("a device decodes what it cannot", "models/exact_linear.py", "if refusal := device.refusal(self.codec):", "if refusal := 0:", "tests/models/test_exact_linear.py"),
    Mutation("a lost device is used again", "models/model.py", "if self._lost is not None:", "if False:", "tests/devices/test_fake.py"),
    Mutation("a request's share is counted twice", "stats.py", "self.whole.add(share)", "self.whole.add(share), self.whole.add(share)", LOOP),
    Mutation("waiting counts as arithmetic too", "stats.py", "compute=(taken.verify - taken.wait) *", "compute=taken.verify *", STATS),
    Mutation("a round counts before its first token", "stats.py", "if self.first is not None:\n            self.decode", "if True:\n            self.decode", STATS),
    Mutation("a chunk's token is chosen too early", "batch.py", "tokens[:count], count == len(tokens))", "tokens[:count], True)", LOOP),
    Mutation("an early level takes the nodes of later ones", "drafters/pace.py", "if count + sum(_levels(*fall, max(chance, pays)) for fall in falls) > room:", "if count > room:", PACE),
    Mutation("one text's chain takes the nodes of all", "drafters/pace.py", "max(chance, pays)) for fall", "pays) for fall", PACE),
    Mutation("eight texts are expected to give what one gave", "drafters/policy.py", "ratio = texts / self.texts", "ratio = 1.0", "tests/drafters/test_policy.py"),
    Mutation("what is read beside drafts makes them look slow", "engine.py", "seconds = max(now - start - beside, drafted - start)", "seconds = now - start", LOOP),
    Mutation("the oldest prompt takes all the room", "reading.py", "((0, left - left // 2), *", "((0, left), *", READING),
    Mutation("long prompts are read before short ones", "reading.py", "key=lambda number: unread[number]", "key=lambda number: -unread[number]", READING),
    Mutation("reading takes what time it likes", "reading.py", "min(max(cost.nodes_within(seconds, most) - drafted, reading), most - drafted)", "most - drafted", f"{READING} {LOOP}"),
    Mutation("a row that waits for its prompt costs nothing", "reading.py", "waiting = usual / decoding * _passes(left, max(free, 1))", "waiting = 0.0", READING),
    Mutation("reading sticks out though it could ride free", "reading.py", "min(WASTE * self.unused, 1.0) * cost", "0.0 * cost", READING),
    Mutation("nobody learns whether what rides free is needed", "reading.py", "KEPT * self.unused +", "self.unused + 0 *", READING),
    Mutation("nobody tells the loop what a pass takes", "engine.py", "room(self.cost, used", "room(PassCost(), used", LOOP),
    Mutation("a failed pass leaves the cache ahead", "engine.py", "            self._undo(running)\n", "", LOOP),
    Mutation("more is accepted than was taken", "engine.py", "min(len(path) - 1, len(taken))", "len(path) - 1", LOOP),
    Mutation("a token that is none is written", "engine.py", "return tokens[: count - 1]", "return tokens[:count]", LOOP),
    Mutation("a bug in one request's pass ends all of them", "scheduler.py", "if len(running) > 1 and not isinstance(bug.error, UnderstudyError):", "if False:", LOOP),
    Mutation("a bug after the choice ends all requests", "engine.py", "with Caught() as bug:\n            return self._advance", "if bug := Caught():\n            return self._advance", LOOP),
    Mutation("a client that tries again queues behind its ghost", "service.py", "sum(not request.cancelled for request in tuple(self.llm.scheduler.waiting))", "len(self.llm.scheduler.waiting) + len(self.llm.scheduler.running)", "tests/server/test_waiting.py"),
    Mutation("whole answers show no life", "server/responses.py", "timeout=self.silence", "timeout=None", "tests/server/test_waiting.py"),
    Mutation("a head may take for ever", "server/connections.py", "self.loop.call_later(self.seconds", "self.loop.call_later(1000 + self.seconds", "tests/server/test_guards.py"),
    Mutation("a call that the length cut off is called", "replies/splitter.py", "None if cut and closed else", "None if False else", "tests/replies"),
    Mutation("a bare JSON is a call of anything", "replies/format.py", 'if calls and name.startswith("bare_")', 'if False and name.startswith("bare_")', "tests/replies"),
    Mutation("reasoning that the template opens is content", "api/conversation.py", "return text[shared:]", 'return ""', "tests/server/test_reasoning.py"),
    Mutation("marks that are special tokens are lost", "api/asking.py", "conversation.form.kept(llm.tokenizer)", "()", "tests/server/test_marks.py"),
    Mutation("a namespace is lost", "api/openai_responses/tools.py", '{} if own.namespace is None else {"namespace": own.namespace}', "{}", "tests/server/test_responses.py"),
    Mutation("the billing line is told to the model", "api/anthropic_messages/body.py", "if not text.startswith(BILLING):", "if True:", "tests/server/test_messages.py"),
    Mutation("a call that is required is left to the model", "api/conversation.py", "self.must or own", "own", "tests/server/test_tools.py"),
    Mutation("strict calls are as free as others", "api/conversation.py", "form = self.strict(own)", "pass", "tests/server/test_tools.py"),
    Mutation("a form holds the reasoning too", "api/conversation.py", "form = self.thought.then(form)", "pass", "tests/server/test_marks.py"),
    Mutation("a prediction is not looked up", "sequence.py", "if not self.prediction:", "if True:", "tests/server/test_prediction.py"),
    Mutation("a cancelled request keeps its row", "scheduler.py", "            if not request.finished:\n                self.engine.release", "            if False:\n                self.engine.release", LOOP),
    Mutation("rows that are realigned lose their last token", "rectangle.py", "places = row * self.capacity + torch.arange(self.lengths[row])", "places = row * self.capacity + torch.arange(max(self.lengths[row] - 1, 0))", RECTANGLE),
    Mutation("rows are realigned to the wrong column", "rectangle.py", "pads = length - self.lengths[row]", "pads = length - self.lengths[row] - (row == 1)", RECTANGLE),
    Mutation("rows run out of slots", "rectangle.py", "max(ends, default=0) + self.scratch < self.capacity", "True", RECTANGLE),
    Mutation("a row of its own pads is written without them", "rectangle.py", "row * self.capacity + pads for row, pads", "row * self.capacity + 0 * pads for row, pads", RECTANGLE),
    Mutation("finished batches are joined", "policies/eqspec.py", "admitted = () if running else waiting[:free]", "admitted = waiting[:free]", RECTANGLE),
    Mutation("the oldest request is left out for ever", "policies/exspec.py", "or self._left_out >= PATIENCE", "", RECTANGLE),
    Mutation("the policy's order is ignored", "admission.py", "for request in selection.admit:", "for request in reversed(selection.admit):", LOOP),
    Mutation("everybody runs, whoever the policy selects", "admission.py", "return [request for request in run if not request.finished]", "return list(running)", LOOP),
    Mutation("the shortest beginning is taken", "reuse.py", "if length == most and kept[row]", "if kept[row]", "tests/test_reuse.py"),
    Mutation("choices go to other sequences", "batch.py", "torch.split(choices, [member.wanted for member in self.members])", "torch.split(choices, [member.wanted for member in self.members][::-1])", LOOP),
    Mutation("the noise of a choice is that of its node", "batch.py", "nodes.positions[joined] + 1", "nodes.positions[joined]", LOOP),
    Mutation("hidden states go to other sequences", "batch.py", "torch.split(hidden, [member.size for member in self.members])", "torch.split(hidden, [member.size for member in self.members][::-1])", LOOP),
    Mutation("the last text is held back", "request.py", "self.reply.take(final=reason is not None)", "self.reply.take(final=False)", "tests/test_request.py"),
    Mutation("the fixed route forgets a part", "tiers/route.py", "(self._turn + 1) % len(self.parts)", "(self._turn + 1) % max(1, len(self.parts) - 1)", ROUTE),
    Mutation("a pass goes on where the last one ended", "tiers/route.py", "def rewind(self) -> None:\n        self._turn = 0", "def rewind(self) -> None:\n        pass", ROUTE),
    Mutation("a short read is taken for a whole one", "tiers/file.py", "while got < needed:", "while got < min(needed, 1):", FILE),
    Mutation("a page that was read in part is passed over", "tiers/file.py", "start = got // ALIGNMENT * ALIGNMENT", "start = -(-got // ALIGNMENT) * ALIGNMENT", FILE),
    Mutation("a bin is one pattern narrower", "kernels/bins.py", "b.add(b.sub(larger, smaller), self.all(HALVES, 1))", "b.sub(larger, smaller)", FORMAT),
    Mutation("the outermost bins are no wider", "kernels/bins.py", "b.add(larger, self.all(HALVES, WIDER[self.bits])), larger)", "larger, larger)", FORMAT),
    Mutation("more bits are chosen however fast the link is", "copy_bits.py", "levels_of_a_pass >= PAYS_FROM", "levels_of_a_pass >= 0", "tests/test_copy_bits.py"),
    Mutation("more bits are chosen that do not fit", "copy_bits.py", "return fits(more) and (plan", "return (plan", "tests/test_copy_bits.py"),
    Mutation("more bits are chosen that leave texts less room", "copy_bits.py", "and _room(plan) == _room(usual.plan())", "", "tests/test_copy_bits.py"),
    Mutation("more bits are chosen where no less is streamed", "copy_bits.py", "return chosen.bits(dtype, MORE) < chosen.bits(dtype, USUAL)", "return True", "tests/test_copy_bits.py"),
    Mutation("a Store that is there is left for other bits", "stores.py", "if len(choices) > 1 and ceiling is not None and ceiling.pays(", "if ceiling is not None and not ceiling.pays(", "tests/test_stores.py"),
    Mutation("a start prepares a copy beside one that is being made", "stores.py", "for place in open_:", "for place in ():", "tests/test_stores.py"),
    Mutation("a copy that does not fit is made again", "stores.py", "if options.bits_left_open and MORE in there else options", "if False else options", "tests/test_stores.py"),
    Mutation("a head has bits that do not fit", "planning.py", "return options if fits(foretold", "return options if True or fits(foretold", "tests/test_planning.py"),
    Mutation("the head's own bits are forgotten", "weights/mixing.py", "found[-1] = recipe.head", "pass", "tests/weights/test_mixing.py"),
    Mutation("bits of all rows are taken as those of few", "kernels/residual_packed.py", "few=shorter and name != self.dense", "few=shorter", PACKED),
    Mutation("a bin of both signs counts from its lower end", "kernels/residual_packed.py", "b.and_(below, b.not_(straddles))", "below", PACKED),
    Mutation("few dense bits are read as nibbles", "kernels/residual_bits.py", "return 4 if self.dense >= 4 else 0", "return 4", FORMAT),
    Mutation("the one scale of a row is moved on by a tile", "kernels/residual.py", "scales.stride(0) * 2 if scales.shape[0] > 1 else 0", "64", "tests/kernels/test_residual.py"),
    Mutation("a third bit is that of another row", "kernels/codes.py", "1 << 2 * v + j // 8", "1 << 2 * v + j % 2", "tests/kernels/test_codes.py"),
    Mutation("a tile is transposed but for one row", "kernels/transpose.py", "second = [i + side // 2 for i in first]", "second = [(i + side // 2) % (2 * side) for i in first[:-1]] + [first[-1]]", "tests/kernels/test_transpose.py"),
    Mutation("blocks run in one call whatever lies between them", "models/block_samples.py", "if given is gave and torch.equal(given, then)", "if True", "tests/models/test_fused.py"),
    Mutation("a fused block is taken over unseen", "models/fused.py", "return bool((new.float() - old.float()).norm() <= TOLERANCE * old.float().norm())", "return True", "tests/models/test_fused.py"),
    Mutation("shares of columns are counted on from the last launch", "kernels/gpu/coded_product.py", "tl.store(counter, 0)", "tl.store(counter, 1)", "tests/kernels/gpu/test_draft_product.py"),
    Mutation("a norm's squares are those of one share", "kernels/gpu/coded_product.py", "squares += tl.load(scratch + M * 64 + line + s * M * 65, cache_modifier=\".cg\")", "squares += 0", "tests/kernels/gpu/test_draft_product.py"),
    Mutation("high halves have the scales of low ones", "kernels/gpu/four_bits.py", "total, p13)", "total, p02)", "tests/kernels/gpu/test_four_bits.py"),
    Mutation("a drafted key is not kept on a GPU", "kernels/gpu/draft_layer.py", "_put(key, value, keys, values, slab + tl.load(slots + node) % places, DIM, D, SIZE, S)", "pass", "tests/kernels/gpu/test_draft_layer.py"),
    Mutation("a level's rows are rounded without what their codes add up to", "kernels/int8_rows.py", "steps[g, r, 1] = step * np.float32(total)", "steps[g, r, 1] = step", "tests/kernels/test_int8_rows.py"),
    Mutation("a node of a level sees twice what all of them see", "kernels/draft_layer.py", "begin = low if visit < count else max(low, after)", "begin = low", "tests/kernels/test_draft_layer.py"),
    Mutation("a node of a level sees twice what others do not see yet", "kernels/draft_layer.py", "if after <= first:", "if False:", "tests/kernels/test_draft_layer.py"),
    Mutation("a level goes on into another row of the cache", "kernels/draft_layer.py", "if rows[i] != rows[start]:", "if False:", "tests/kernels/test_draft_layer.py"),
    Mutation("a softmax forgets its sink", "kernels/softmax.py", "total += _exponential(sink - top)", "pass", "tests/kernels/test_softmax.py"),
    Mutation("a tree's nodes have each other's path in common", "kernels/attention_cpu.py", "first = max(start, prefix) if mine == row", "first = max(start, last) if mine == row", "tests/kernels/test_attention.py"),
    Mutation("weights of several types are those of the first", "weights/store.py", "if len(types) > 1:", "if False:", "tests/weights/test_store.py"),
    Mutation("an expert reads the rows of another", "kernels/draft_mixture.py", "row = start + r if down else order[start + r] // run.each", "row = start + r if down else order[r] // run.each", "tests/kernels/test_draft_mixture.py"),
    Mutation("a number that no expert has is one", "kernels/draft_mixture.py", "if places[i] >= 0:", "if True:", "tests/kernels/test_draft_mixture.py"),
    Mutation("a gate opens what the next head gives", "kernels/turned_heads.py", "made_at(run, i, head) + run.key_size * run.itemsize", "made_at(run, i, head)", "tests/kernels/test_draft_layer.py"),
    Mutation("a key of the delta rule is as long as it was made", "kernels/draft_delta.py", "_unit(line[half + head * size : half + (head + 1) * size], asked[node, head, 1], np.float32(1))", "asked[node, head, 1] = line[half + head * size : half + (head + 1) * size]", "tests/kernels/test_draft_delta.py"),
    Mutation("a norm of all heads is that of one", "kernels/turned_heads.py", "np.float32(count * run.key_size)", "np.float32(run.key_size)", "tests/kernels/test_draft_layer.py"),
    Mutation("what is not turned is lost", "kernels/turned_heads.py", "out[c] = turns[0, c]\n", "out[c] = 0\n", "tests/kernels/test_draft_layer.py"),
    Mutation("a result is normed with what is added to it", "kernels/draft_product.py", "if run.added != 0 and run.after == 0:", "if run.added != 0:", "tests/kernels/test_draft_product.py"),
    Mutation("a comparison leaves its own keys", "models/fused.py", "        slab[row, :, places] = old\n", "        pass\n", "tests/models/test_fused.py"),
    Mutation("a drafted key is kept before it is turned", "kernels/turned_heads.py", "turn(run, i, run.heads + head, factors, turns, key)", "turn(run, i, head, factors, turns, key)", "tests/kernels/test_draft_layer.py"),
    Mutation("all outputs of a block are its first sixteen", "kernels/amx_dot.py", "self.tile(lines, self.at(here, 64 * v), LONG(256))", "self.tile(lines, here, LONG(256))", "tests/kernels/test_amx_dot.py"),
    Mutation("the last columns are left out", "kernels/amx_dot.py", 'builder.icmp_unsigned("!=", whole, columns)', 'builder.icmp_unsigned(">", whole, columns)', "tests/kernels/test_amx_dot.py tests/kernels/test_exact_product.py"),
    Mutation("pairs of columns are swapped", "kernels/bfdot.py", "for j in range(16) for t in range(2)]", "for j in range(16) for t in (1, 0)]", "tests/kernels/test_bfdot.py"),
    Mutation("an unknown tensor within the text model is overlooked", "models/aside.py", "        if part is None:", "        if False:", "tests/models/test_aside.py"),
    Mutation("a transposed weight is exported as it is multiplied by", "weights/export.py", "if not entry.turned:", "if True:", "tests/models/test_turned.py"),
    Mutation("a transposed weight is linked to", "weights/encoding.py", "if chosen.linked and spec.turned else chosen", "if False else chosen", "tests/models/test_turned.py"),
    Mutation("a text goes on after a token for an image", "making.py", "stops(token) or token >= readable", "stops(token)", "tests/models/test_wrapper.py"),
    Mutation("a wrapper's language model hands on other states", "models/wrapper.py", "        return Hidden(done.last_hidden_state)", "        return Hidden(done.last_hidden_state * 0.5)", "tests/models/test_wrapper.py"),
    Mutation("a part has rows of two experts", "weights/entries.py", "    each = blocks_of(unit)\n", "    each = blocks_of(rows)\n", "tests/weights/test_entries.py"),
    Mutation("what one tensor of experts holds is linked to in the first", "weights/checkpoint.py", "info = self.info(spec.tensors[number])", "info = self.info(spec.weight)", "tests/weights/test_encoding.py tests/weights/test_checkpoint.py"),
    Mutation("experts of several types are those of the first", "weights/shards.py", "if info.kind != infos[0].kind:", "if False:", "tests/weights/test_checkpoint.py"),
    Mutation("experts are stored once more as what the model does not use", "weights/building.py", "weights = [name for spec in layout.linears for name in spec.tensors]", "weights = [spec.weight for spec in layout.linears]", "tests/weights/test_building.py"),
    Mutation("a weight that is stored anew leaves its first copy behind", "weights/building.py", "                file.cut(end)", "                pass", "tests/weights/test_building.py"),
    Mutation("a linked Store does not watch what it points to", "weights/building.py", "linked=linked_files(extents),", "linked=linked_files([]),", "tests/weights/test_integrity.py"),
    Mutation("a line that two replicas answered has two records", "cluster/lines.py", 'if self.output.holds(line_of(row["number"], row["text"])):', "if False:", "tests/cluster/test_lines.py"),
    Mutation("a replica whose passes cannot run is well", "cluster/replicas.py", "        if models.fault:", "        if False:", "tests/cluster/test_replicas.py"),
    Mutation("one resource of a machine is enough for a replica", "cluster/connection.py", "return min(int(resources", "return max(int(resources", "tests/cluster/test_connection.py"),
    Mutation("slower threads are chosen", "devices/thread_choice.py", "if mean < self.usual *", "if mean > self.usual *", "tests/devices/test_thread_choice.py"),
    Mutation("calm long work tries fewer threads at once", "devices/thread_choice.py", "self.since >= self.wait", "self.since >= self.apart", "tests/devices/test_thread_choice.py"),
    Mutation("shorter work disturbs calm long work", "devices/thread_choice.py", "self.trial is None and not self.calm and", "self.trial is None and", "tests/devices/test_thread_choice.py"),
    Mutation("a suggestion to calm work is forgotten", "devices/thread_choice.py", "self._follow()\n        if self.trial is None and self.runs", "if self.trial is None and self.runs", "tests/devices/test_thread_choice.py"),
    Mutation("what disturbs long work is not noticed", "devices/thread_choice.py", "share < DISTURBED", "False", "tests/devices/test_thread_choice.py"),
    Mutation("more threads wait for a calm machine too", "devices/thread_choice.py", " and self.threads.kernels == self.options[0].kernels", "", "tests/devices/test_thread_choice.py"),
    Mutation("the share of processor time forgets the threads", "devices/thread_choice.py", "used / (seconds * threads.kernels)", "used / seconds", "tests/devices/test_thread_choice.py"),
    Mutation("torch's threads in a pass change", "devices/processor.py", '"pass": alone', '"pass": options', "tests/devices/test_thread_choice.py"),
    Mutation("threads are not given back", "kernels/team.py", "        _shared.kernels = before", "        pass", "tests/kernels/test_team.py"),
    Mutation("a piece of work is taken twice", "kernels/team.py", 'atomic_rmw("add", place, ir.IntType(64)(1)', 'atomic_rmw("umax", place, ir.IntType(64)(1)', "tests/kernels/test_team.py"),
    Mutation("a caller keeps its threads", "llm.py", "        finally:\n            disband()\n\n    def _stream", "        finally:\n            pass\n\n    def _stream", "tests/test_llm.py"),
)  # fmt: skip


def noticed(mutation: Mutation, copy: Path) -> bool:
    """Do the tests fail with the mutation in place? The original line is put back."""
    path = copy / "src" / "understudy" / mutation.file
    whole = path.read_text()
    assert whole.count(mutation.old) >= 1, f"{mutation.file} has no line {mutation.old!r} any more"
    path.write_text(whole.replace(mutation.old, mutation.new))
    try:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--timeout=120", "-p", "no:cacheprovider", *mutation.tests.split()]
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(copy / "numba"), "OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, cwd=copy, capture_output=True, timeout=600, env=environment)
        return result.returncode == 1
    finally:
        path.write_text(whole)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("src", "tests", "benchmarks"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        missed = 0
        chosen = [mutation for mutation in MUTATIONS if " ".join(sys.argv[1:]) in mutation.what]
        if not chosen:
            sys.exit(f"No mutation has {' '.join(sys.argv[1:])!r} in its name.")
        for mutation in chosen:
            found = noticed(mutation, copy)
            missed += not found
            print(f"{'noticed' if found else 'MISSED '}  {mutation.what}", flush=True)
        print(f"{len(chosen) - missed} of {len(chosen)} mutations noticed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
