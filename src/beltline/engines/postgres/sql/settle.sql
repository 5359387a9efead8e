-- The verbs `settle` and `renew` (how these functions are written: send.sql).

-- Back to its queue, unless its cancellation was asked for. p_keep: to the place it had. The fact has been taken out of `lease`.
CREATE OR REPLACE FUNCTION beltline._back(p_now bigint, f beltline.fact, p_delay bigint, p_why text, p_keep boolean, p_error text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_reason text; v_parked int := CASE WHEN beltline._is_parked(p_why) THEN 1 ELSE 0 END;
BEGIN
  SELECT reason INTO v_reason FROM beltline.asked WHERE id = f.id;
  IF v_reason IS NOT NULL THEN
    PERFORM beltline._end(p_now, f, 2::smallint, v_reason);
    RETURN;
  END IF;
  IF NOT p_keep THEN
    f.since := p_now + p_delay;
    SELECT beltline._rank(f.queue, f.since, prio) INTO f.rank FROM beltline.body WHERE id = f.id;
  END IF;
  f.why := p_why;
  f.error := coalesce(p_error, f.error);
  PERFORM beltline._flow_moved(ARRAY[f.id], 2, CASE WHEN f.since <= p_now THEN 1 ELSE 0 END) WHERE f.flags & 8 <> 0;
  IF f.since <= p_now THEN
    PERFORM beltline._put_ready(p_now, f, f.queue), beltline._moved(f.queue, 2, 1, v_parked), beltline._woken(f.queue);
  ELSE
    PERFORM beltline._put_delayed(f, f.queue), beltline._moved(f.queue, 2, 0, v_parked), beltline._woken(f.queue);
  END IF;
  PERFORM beltline._lane_moves_on(p_now, f);   -- one that was redriven meanwhile may stand before it
END $$;

-- An ack that is more than the end of a message and its hand-off: of a group, or of a part of a gather, or with gathers of its own.
-- p_carried: what follows still has the duty to answer its part.
CREATE OR REPLACE FUNCTION beltline._ack(p_now bigint, f beltline.fact, p_ended smallint, p_ran float8, p_result bytea, p_ttl bigint, p_note text, p_part bytea, p_carried boolean,
  p_then beltline.item[], p_gathers beltline.opened[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_run uuid; v_gather uuid; v_part int; v_opened uuid[];
BEGIN
  SELECT run, gather, part INTO v_run, v_gather, v_part FROM beltline.body WHERE id = f.id;
  INSERT INTO beltline.done(id, ended, started, seq, result_until, queue, epoch, failed, lost, worker, ran, outcome, flags, why, error, result)
    VALUES (f.id, p_now, f.started, f.seq, CASE WHEN v_run IS NULL AND p_result IS NOT NULL THEN p_now + p_ttl END, f.queue, f.epoch, f.failed, f.lost, f.worker, p_ran, p_ended,
      f.flags, p_note, f.error, CASE WHEN v_run IS NULL THEN p_result END);
  PERFORM beltline._moved(f.queue, 2, 3);
  PERFORM beltline._flow_moved(ARRAY[f.id], 2, 3) WHERE f.flags & 8 <> 0;
  DELETE FROM beltline.asked WHERE id = f.id;
  PERFORM beltline._lane_moves_on(p_now, f);
  IF v_run IS NOT NULL THEN
    PERFORM beltline._runs(ARRAY[v_run]);
    PERFORM beltline._run_add(v_run, -1, 0, p_ended);
    IF beltline._given_up(v_run) THEN
      RETURN;
    END IF;
    IF p_result IS NOT NULL THEN
      UPDATE beltline.run SET result = p_result, result_until = p_now + p_ttl WHERE id = v_run;
    END IF;
  END IF;
  IF p_gathers IS NOT NULL THEN
    v_opened := beltline._open(p_now, p_gathers);
  END IF;
  IF p_then IS NOT NULL THEN
    PERFORM beltline._hand_on(p_now, p_then);
  END IF;
  PERFORM beltline._fire_if_complete(p_now, g) FROM unnest(v_opened) g;
  IF v_gather IS NOT NULL THEN
    IF p_part IS NOT NULL THEN
      PERFORM beltline._answer(p_now, v_gather, v_part, p_part);
    ELSIF NOT p_carried THEN
      PERFORM beltline._absent(p_now, v_gather, v_part, p_ended <> 1);
    END IF;
  END IF;
END $$;

-- Acks in one go: no group, no part, no gathers. p_ids: the messages, p_ords: their places in the batch. Their rows in `done` are written. Returns runs to be judged.
CREATE OR REPLACE FUNCTION beltline._pass(p_now bigint, p_ids uuid[], p_ords int[], p_ended smallint[], p_result bytea[], p_ttl bigint[], p_then beltline.item[]) RETURNS uuid[] LANGUAGE plpgsql AS $$
DECLARE
  v_runs uuid[]; v_mine uuid[]; v_foreign uuid[] := '{}'; v_others uuid[]; v_then beltline.item[] := p_then; v_new beltline.item[];
  v_whole boolean := cardinality(p_ords) = cardinality(p_ended);   -- else pick: reading one value of a long array walks through those before it
  v_ended smallint[] := CASE WHEN v_whole THEN p_ended ELSE ARRAY(SELECT p_ended[o] FROM unnest(p_ords) o) END;
  v_result bytea[] := CASE WHEN v_whole OR p_result IS NULL THEN p_result ELSE ARRAY(SELECT p_result[o] FROM unnest(p_ords) o) END;
  v_ttl bigint[] := CASE WHEN v_whole OR p_ttl IS NULL THEN p_ttl ELSE ARRAY(SELECT p_ttl[o] FROM unnest(p_ords) o) END;
BEGIN
  SELECT array_agg(b.run ORDER BY i.ord) INTO v_runs FROM unnest(p_ids) WITH ORDINALITY AS i(id, ord) CROSS JOIN LATERAL (SELECT run FROM beltline.body x WHERE x.id = i.id OFFSET 0) b;
  v_mine := array_remove(v_runs, NULL);
  IF v_mine <> '{}' THEN
    PERFORM beltline._runs(v_mine);
    IF p_then IS NOT NULL AND EXISTS (SELECT FROM beltline.run WHERE id = ANY(v_mine) AND state >= 3) THEN   -- what they would hand on is dropped
      SELECT array_agg(ROW(t.*)::beltline.item ORDER BY t.ord) INTO v_then FROM unnest(p_then) t
        WHERE NOT EXISTS (SELECT FROM unnest(v_runs, p_ords) r(run, ord) JOIN beltline.run u ON u.id = r.run WHERE r.ord = t.ord AND u.state >= 3);
    END IF;
  END IF;
  IF v_then IS NOT NULL THEN
    v_new := beltline._only(v_then, beltline._store(p_now, v_then));
    PERFORM beltline._woken(queue) FROM (SELECT DISTINCT queue FROM unnest(v_new)) q;
    v_foreign := ARRAY(SELECT run FROM unnest(v_new) WHERE run IS NOT NULL EXCEPT SELECT unnest(v_mine));
    IF v_foreign <> '{}' THEN   -- hardly ever: a hand-off into another run
      v_others := beltline._enter(p_now, (SELECT array_agg(ROW(n.*)::beltline.item) FROM unnest(v_new) n WHERE run = ANY(v_foreign)));
    END IF;
  END IF;
  IF v_mine = '{}' THEN
    RETURN v_others;
  END IF;
  -- A linear hand-off, one gone and one come, changes nothing in its run, so nothing is written.
  WITH net AS (
    SELECT run, sum(change) AS change, max(ended) AS ended, (array_agg(result) FILTER (WHERE result IS NOT NULL))[1] AS result,
        (array_agg(ttl) FILTER (WHERE result IS NOT NULL))[1] AS ttl FROM (
      SELECT r.run, -1 AS change, r.ended, r.result, r.ttl FROM unnest(v_runs, v_ended, v_result, v_ttl) r(run, ended, result, ttl) WHERE r.run IS NOT NULL
      UNION ALL SELECT n.run, 1, NULL, NULL, NULL FROM unnest(v_new) n WHERE n.run IS NOT NULL AND (v_foreign = '{}' OR NOT n.run = ANY(v_foreign))) changes
    GROUP BY run),
  judged AS (
    SELECT u.id, u.counted AS before, n.change, n.ended, CASE WHEN u.state < 3 THEN n.result END AS result, n.ttl,
        CASE WHEN u.state >= 3 THEN u.state WHEN u.open + n.change > 0 THEN 0 WHEN u.dead > 0 THEN 2 WHEN coalesce(n.ended, u.last) IN (2, 3) THEN 4 ELSE 1 END AS state
      FROM net n CROSS JOIN LATERAL (SELECT * FROM beltline.run x WHERE x.id = n.run OFFSET 0) u WHERE n.change <> 0 OR n.result IS NOT NULL),
  written AS (
    UPDATE beltline.run r SET open = r.open + j.change, last = coalesce(j.ended, r.last), state = j.state, counted = j.state,
        ended = CASE WHEN j.state = j.before THEN r.ended WHEN j.state IN (0, 2) THEN 0 ELSE p_now END,
        result = coalesce(j.result, r.result), result_until = CASE WHEN j.result IS NULL THEN r.result_until ELSE p_now + j.ttl END
      FROM judged j WHERE r.id = j.id RETURNING r.chain, j.before, j.state)
  INSERT INTO beltline.run_delta(chain, state, count)
    SELECT chain, state, sum(change) FROM (
      SELECT chain, state, 1 AS change FROM written WHERE state <> before UNION ALL SELECT chain, before, -1 FROM written WHERE state <> before AND before >= 0) changes
    GROUP BY chain, state HAVING sum(change) <> 0;
  RETURN v_others;
END $$;

-- A mixed batch: op 0 ack, 1 retry, 2 release, 3 dead-letter. `done`: the places of those that took effect; a receipt that is not among them had lost its lease and has
-- written nothing. `refused`: a hand-off names a queue that is not declared; nothing is written. The last p_templates items are what gathers send. Ids in one call differ.
CREATE OR REPLACE FUNCTION beltline.settle(p_now bigint, p_guest boolean, s_id uuid[], s_epoch int[], s_ran float8[], s_op smallint[], s_ended smallint[], s_delay bigint[], s_lost boolean[],
  s_result bytea[], s_ttl bigint[], s_part bytea[], s_note text[], s_error text[], s_failure bytea[], c_parent int[], c_gather uuid[], c_part int[],
  p_queues text[], p_tasks text[], p_chains text[], p_templates int, p_parent int[],
  p_id uuid[], p_queue int[], p_task int[], p_prio smallint[], p_due bigint[], p_delay bigint[], p_expires bigint[], p_group bytea[], p_dedup bytea[],
  p_dedup_ms bigint[], p_run uuid[], p_chain int[], p_gather uuid[], p_part int[], p_head bytea[], p_body bytea[],
  g_parent int[], g_id uuid[], g_run uuid[], g_chain text[], g_expected int[], g_on_dead smallint[], g_outer uuid[], g_outer_part int[], g_ttl bigint[], g_data bytea[],
  g_then int[], g_prefix bytea[], g_suffix bytea[], s_snooze bigint[] DEFAULT NULL, p_flow jsonb[] DEFAULT NULL)
  RETURNS TABLE(done int[], woken text, refused text) LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
#variable_conflict use_column
DECLARE
  v_now bigint := CASE WHEN p_guest THEN beltline._time(p_now) ELSE beltline._now(p_now, 1) END;
  v_queues int[] := beltline._queues(p_queues);
  v_items beltline.item[]; v_gathers beltline.opened[]; v_then beltline.item[];
  v_done int[]; v_runs uuid[]; v_rest beltline.fact[]; v_ord int[]; v_fast boolean[]; f beltline.fact; o int; i int := 1; j int;
  v_ended smallint[] := coalesce(s_ended, array_fill(1::smallint, ARRAY[coalesce(cardinality(s_id), 0)]));
  v_lost boolean; v_whole boolean; v_mine beltline.opened[]; v_laned uuid[];
BEGIN
  IF p_guest THEN
    PERFORM set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') IN ('off', 'local');
  END IF;
  PERFORM set_config('beltline.woken', '', true);
  IF p_guest AND (SELECT seal FROM beltline.clock) > 1 THEN   -- the queues have moved: this delivery is over
    RETURN QUERY SELECT '{}'::int[], '', NULL::text;
    RETURN;
  END IF;
  IF array_position(v_queues, NULL) IS NOT NULL THEN
    RETURN QUERY SELECT '{}'::int[], '', p_queues[array_position(v_queues, NULL)];
    RETURN;
  END IF;
  IF p_id IS NOT NULL THEN
    v_items := beltline._items(v_queues, p_tasks, p_chains, p_parent, p_id, p_queue, p_task, p_prio, p_due, p_delay, p_expires, p_group, p_dedup, p_dedup_ms, p_run, p_chain,
      p_gather, p_part, p_head, p_body, p_flow);
  END IF;
  IF g_id IS NOT NULL THEN
    v_gathers := beltline._gathers(v_items, g_parent, g_id, g_run, g_chain, g_expected, g_on_dead, g_outer, g_outer_part, g_ttl, g_data, g_then, g_prefix, g_suffix);
    v_items := v_items[1 : coalesce(cardinality(v_items), 0) - p_templates];
  END IF;
  -- Held: looked up one by one, whatever the planner believes of the table (OFFSET 0), and locked. `simple`: acks without group, part and gathers.
  SELECT array_agg(h.ord ORDER BY h.ord), array_agg(h.f ORDER BY h.ord), array_agg(h.simple ORDER BY h.ord) INTO v_done, v_rest, v_fast FROM (
    SELECT s.ord::int AS ord, coalesce(s.op, 0) = 0 AND l.flags & 5 = 0 AND NOT coalesce(s.ord = ANY(g_parent), false) AS simple,
        ROW(2, false, l.queue, l.seq, l.id, l.rank, l.since, l.epoch, l.failed, l.lost, l.flags, NULL, NULL, l.error, l.due, l.started, l.worker)::beltline.fact AS f
      FROM unnest(s_id, s_epoch, s_op) WITH ORDINALITY AS s(id, epoch, op, ord)
        CROSS JOIN LATERAL (SELECT * FROM beltline.lease x WHERE x.id = s.id AND x.epoch = s.epoch OFFSET 0 FOR UPDATE) l) h;
  IF v_done IS NULL THEN
    RETURN QUERY SELECT '{}'::int[], '', NULL::text;
    RETURN;
  END IF;
  v_whole := cardinality(v_done) = cardinality(s_id);
  IF s_snooze IS NOT NULL OR EXISTS (SELECT FROM beltline.queue q WHERE q.n = ANY(ARRAY(SELECT DISTINCT r.queue FROM unnest(v_rest) r)) AND q.gated) THEN
    PERFORM beltline._flow_settled(v_now, v_rest, v_done, s_ran, s_op, s_snooze);
    SELECT array_agg(r.id) INTO v_laned FROM unnest(v_rest, v_fast) AS r(state, blocked, queue, seq, id, rank, since, epoch, failed, lost, flags, expires, why, error, due, started, worker, simple)
      WHERE r.simple AND r.flags & 8 <> 0;
    PERFORM beltline._flow_moved(v_laned, 2, 3) WHERE v_laned IS NOT NULL;
  END IF;
  WITH simple AS MATERIALIZED (
    SELECT f.* FROM unnest(v_rest, v_fast,
        CASE WHEN v_whole THEN s_ran ELSE ARRAY(SELECT s_ran[o] FROM unnest(v_done) o) END,
        CASE WHEN v_whole THEN v_ended ELSE ARRAY(SELECT v_ended[o] FROM unnest(v_done) o) END,
        CASE WHEN v_whole OR s_result IS NULL THEN s_result ELSE ARRAY(SELECT s_result[o] FROM unnest(v_done) o) END,
        CASE WHEN v_whole OR s_ttl IS NULL THEN s_ttl ELSE ARRAY(SELECT s_ttl[o] FROM unnest(v_done) o) END,
        CASE WHEN v_whole OR s_note IS NULL THEN s_note ELSE ARRAY(SELECT s_note[o] FROM unnest(v_done) o) END)
      AS f(state, blocked, queue, seq, id, rank, since, epoch, failed, lost, flags, expires, why, error, due, started, worker, simple, ran, outcome, result, ttl, note)
      WHERE simple),
  gone AS (DELETE FROM beltline.lease l WHERE l.id = ANY(ARRAY(SELECT id FROM simple))),
  finished AS (
    INSERT INTO beltline.done(id, ended, started, seq, result_until, queue, epoch, failed, lost, worker, ran, outcome, flags, why, error, result)
      SELECT id, v_now, started, seq, CASE WHEN flags & 2 = 0 AND result IS NOT NULL THEN v_now + ttl END, queue, epoch, failed, lost, worker, ran, outcome, flags, note, error,
        CASE WHEN flags & 2 = 0 THEN result END FROM simple)
  INSERT INTO beltline.delta SELECT queue, 0, 0, -count(*), 0, count(*), 0 FROM simple GROUP BY queue;
  -- What is not simple stays leased until its turn: what an earlier one hands on into the same group must find it standing there.
  SELECT array_agg(r.ord ORDER BY r.ord), array_agg(r.simple ORDER BY r.ord),
      array_agg(ROW(state, blocked, queue, seq, id, rank, since, epoch, failed, lost, flags, expires, why, error, due, started, worker)::beltline.fact ORDER BY r.ord)
    INTO v_ord, v_fast, v_rest FROM unnest(v_rest, v_fast, v_done)
      AS r(state, blocked, queue, seq, id, rank, since, epoch, failed, lost, flags, expires, why, error, due, started, worker, simple, ord)
    WHERE NOT r.simple OR r.flags & 2 <> 0 OR coalesce(r.ord = ANY(p_parent), false);
  IF EXISTS (SELECT FROM beltline.asked) THEN   -- an ack stands
    DELETE FROM beltline.asked a WHERE a.id IN (SELECT s_id[d] FROM unnest(v_done) d WHERE coalesce(s_op[d], 0) = 0);
  END IF;
  -- In the order given: one that fails its run takes away what later ones would hand on. Neighbours that are simple go together.
  WHILE i <= coalesce(cardinality(v_rest), 0) LOOP
    IF v_fast[i] THEN
      j := i;
      WHILE j < cardinality(v_rest) AND v_fast[j + 1] LOOP
        j := j + 1;
      END LOOP;
      v_then := v_items;
      IF i > 1 OR j < cardinality(v_rest) OR cardinality(v_done) < cardinality(s_id) THEN
        SELECT array_agg(ROW(t.*)::beltline.item) INTO v_then FROM unnest(v_items) t WHERE t.ord = ANY(v_ord[i : j]);
      END IF;
      v_runs := v_runs || beltline._pass(v_now, ARRAY(SELECT r.id FROM unnest(v_rest[i : j]) r), v_ord[i : j], v_ended, s_result, s_ttl, v_then);
      i := j + 1;
      CONTINUE;
    END IF;
    f := v_rest[i];
    o := v_ord[i];
    i := i + 1;
    DELETE FROM beltline.lease WHERE id = f.id;
    IF f.flags & 2 <> 0 THEN
      SELECT array_append(v_runs, run) INTO v_runs FROM beltline.body WHERE id = f.id;
    END IF;
    v_lost := coalesce(s_lost[o], false);
    CASE coalesce(s_op[o], 0)
    WHEN 0 THEN
      SELECT array_agg(ROW(t.*)::beltline.item) INTO v_then FROM unnest(v_items) t WHERE t.ord = o;
      SELECT array_agg(ROW(g.*)::beltline.opened) INTO v_mine FROM unnest(v_gathers) g WHERE g.ord = o;
      PERFORM beltline._ack(v_now, f, coalesce(s_ended[o], 1::smallint), s_ran[o], s_result[o], s_ttl[o], s_note[o], s_part[o],
        EXISTS (SELECT FROM unnest(c_parent, c_gather, c_part) c(ord, gather, part) JOIN beltline.body b ON b.gather = c.gather AND b.part = c.part WHERE c.ord = o AND b.id = f.id),
        v_then, v_mine);
    WHEN 2 THEN
      PERFORM beltline._note(v_now, f, 'release', 0, coalesce(s_note[o], ''), NULL);
      PERFORM beltline._back(v_now, f, s_delay[o], coalesce(s_note[o], ''), s_delay[o] <= 0, NULL);
    WHEN 1 THEN
      IF v_lost AND f.lost + 1 >= (SELECT max_deliveries FROM beltline.queue WHERE n = f.queue) THEN
        PERFORM beltline._note(v_now, f, 'dead_letter', s_ran[o], 'poison: ' || f.lost + 1 || ' deliveries never answered', s_failure[o]);
        f.lost := f.lost + 1;
        PERFORM beltline._die(v_now, f, 'poison: ' || f.lost || ' deliveries never answered', s_error[o], s_failure[o]);
      ELSE
        PERFORM beltline._note(v_now, f, CASE WHEN v_lost THEN 'lost' ELSE 'retry' END, s_ran[o], '', s_failure[o]);
        f.lost := f.lost + v_lost::int;
        f.failed := f.failed + (NOT v_lost)::int;
        PERFORM beltline._back(v_now, f, s_delay[o], coalesce(s_note[o], ''), false, s_error[o]);
      END IF;
    WHEN 3 THEN
      PERFORM beltline._note(v_now, f, 'dead_letter', s_ran[o], s_note[o], s_failure[o]);
      f.lost := f.lost + v_lost::int;
      f.failed := f.failed + (NOT v_lost)::int;
      PERFORM beltline._die(v_now, f, s_note[o], s_error[o], s_failure[o]);
    END CASE;
  END LOOP;
  IF v_runs IS NOT NULL THEN
    PERFORM beltline._judge(v_now, v_runs);
  END IF;
  RETURN QUERY SELECT coalesce(v_done, '{}'), current_setting('beltline.woken', true), NULL::text;
END $$;

-- `place`: of the receipts that still hold; `asked`: somebody wants it to stop.
CREATE OR REPLACE FUNCTION beltline.renew(p_now bigint, p_id uuid[], p_epoch int[], p_lease bigint) RETURNS TABLE(place int, asked boolean) LANGUAGE plpgsql
  SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
#variable_conflict use_column
DECLARE v_now bigint := beltline._now(p_now, 1); v_until bigint := v_now + p_lease; v_ids uuid[]; v_ords int[]; v_late int[];
BEGIN
  SELECT array_agg(l.id), array_agg(r.ord::int), array_agg(DISTINCT l.queue) FILTER (WHERE l.due <= v_now) INTO v_ids, v_ords, v_late
    FROM unnest(p_id, p_epoch) WITH ORDINALITY AS r(id, epoch, ord)
      CROSS JOIN LATERAL (SELECT id, due, queue FROM beltline.lease x WHERE x.id = r.id AND x.epoch = r.epoch OFFSET 0 FOR UPDATE) l;
  IF EXISTS (SELECT FROM beltline.queue WHERE n = ANY(v_late) AND gated) THEN
    SELECT k.ids, k.ords INTO v_ids, v_ords FROM beltline._flow_renewed(v_now, v_until, v_late, v_ids, v_ords) k;
  END IF;
  UPDATE beltline.lease SET due = v_until WHERE id = ANY(v_ids);
  RETURN QUERY SELECT h.ord, EXISTS (SELECT FROM beltline.asked a WHERE a.id = h.id) FROM unnest(v_ids, v_ords) h(id, ord);
END $$;
