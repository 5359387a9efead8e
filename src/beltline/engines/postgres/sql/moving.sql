-- A move of all queues out of this schema or into it. The seal says how far it is: its level in `clock`, where every verb sees it, all of it in `meta`.
-- Each page is one call: the seal that tells where the next page begins, and what is not there yet, in one transaction.

-- False: the seal is not p_before (NULL: none), nothing was written. p_level: that of p_after.
CREATE OR REPLACE FUNCTION beltline.set_seal(p_before text, p_after text, p_level int) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  PERFORM FROM beltline.clock FOR UPDATE;   -- one at a time
  IF (SELECT value FROM beltline.meta WHERE key = 'seal') IS DISTINCT FROM p_before THEN
    RETURN false;
  END IF;
  DELETE FROM beltline.meta WHERE key = 'seal';
  INSERT INTO beltline.meta(key, value) SELECT 'seal', p_after WHERE p_after IS NOT NULL;
  UPDATE beltline.clock SET seal = p_level WHERE seal <> p_level;
  PERFORM set_config('beltline.mover', p_level::text, true);   -- in this transaction the level forbids nothing: it is the mover's
  RETURN true;
END $$;

-- ------------------------------------------------------------------------------------------------------------- out
CREATE OR REPLACE FUNCTION beltline.take_messages(p_after bigint, p_limit int) RETURNS TABLE(
  seq bigint, id uuid, state int, blocked boolean, queue text, task text, group_key bytea, run uuid, head bytea, body bytea, sent bigint, epoch int, failed int, lost int,
  rank bigint, since bigint, due bigint, expires bigint, started bigint, worker text, ran float8, outcome int, result bytea, result_until bigint, why text, error text,
  asked text, progress bytea) LANGUAGE sql STABLE SET enable_seqscan = off SET jit = off AS $$
  SELECT b.seq, b.id, f.state, f.blocked, q.name, b.task, b.group_key, r.id, b.head, b.body, b.sent, f.epoch, f.failed, f.lost,
      f.rank, f.since, f.due, f.expires, f.started, n.text, f.ran::text::float8, f.outcome, f.result, f.result_until, f.why, f.error, a.reason, p.value
  FROM beltline.body b CROSS JOIN LATERAL (
      SELECT 3 AS state, false AS blocked, queue, epoch, failed, lost, 0::bigint AS rank, 0::bigint AS since, ended AS due, NULL::bigint AS expires, started, worker, ran,
          outcome::int AS outcome, result, result_until, why, error FROM beltline.done WHERE id = b.id
      UNION ALL SELECT 1, false, queue, epoch, failed, lost, rank, since, since, expires, NULL, NULL, NULL, NULL, NULL, NULL, why, error FROM beltline.ready WHERE id = b.id
      UNION ALL SELECT 1, false, queue, epoch, failed, lost, rank, since, since, expires, NULL, NULL, NULL, NULL, NULL, NULL, why, error FROM beltline.flow_ready WHERE id = b.id
      UNION ALL SELECT 2, false, queue, epoch, failed, lost, rank, since, due, NULL, started, worker, NULL, NULL, NULL, NULL, NULL, error FROM beltline.lease WHERE id = b.id
      UNION ALL SELECT 0, false, queue, epoch, failed, lost, rank, since, since, expires, NULL, NULL, NULL, NULL, NULL, NULL, why, error FROM beltline.delayed WHERE id = b.id
      UNION ALL SELECT was, true, queue, epoch, failed, lost, rank, since, since, expires, NULL, NULL, NULL, NULL, NULL, NULL, why, error FROM beltline.blocked WHERE id = b.id
      UNION ALL SELECT 4, false, queue, epoch, failed, lost, 0, 0, ended, NULL, NULL, NULL, NULL, NULL, NULL, NULL, why, error FROM beltline.dead WHERE id = b.id
      LIMIT 1) f
    JOIN beltline.queue q ON q.n = f.queue
    LEFT JOIN beltline.run r ON r.id = b.run LEFT JOIN beltline.name n ON n.n = f.worker
    LEFT JOIN beltline.asked a ON a.id = b.id LEFT JOIN beltline.progress p ON p.id = b.id
  WHERE b.seq > p_after ORDER BY b.seq LIMIT p_limit
$$;

-- ------------------------------------------------------------------------------------------------------------- in
CREATE OR REPLACE FUNCTION beltline.put_queues(
  p_before text, p_after text, p_level int, p_now bigint, p_seen bigint, p_name text[], p_spec bytea[], p_max_backlog float8[], p_high_water float8[], p_low_water float8[],
  p_ageing_ms bigint[], p_max_deliveries int[], p_skip_dead boolean[], p_feed_of text[], p_feed text[], p_fan_out int[], p_paused boolean[], p_done bigint[],
  p_hand_outs bigint, p_next bigint, p_flow jsonb[] DEFAULT NULL, p_snoozed bigint[] DEFAULT NULL, p_switch jsonb[] DEFAULT NULL) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  IF NOT beltline.set_seal(p_before, p_after, p_level) THEN
    RETURN false;
  END IF;
  IF NOT beltline.declare(p_now, p_seen, p_name, p_spec, p_max_backlog, p_high_water, p_low_water, p_ageing_ms, p_max_deliveries, p_skip_dead, p_feed_of, p_feed, p_fan_out, p_flow) THEN
    RAISE EXCEPTION 'somebody declares at the same time' USING ERRCODE = 'serialization_failure';
  END IF;
  UPDATE beltline.queue q SET paused = i.paused FROM unnest(p_name, p_paused) AS i(name, paused) WHERE q.name = i.name;
  PERFORM beltline._shut(q.n, i.snoozed, i.switch) FROM unnest(p_name, p_snoozed, p_switch) AS i(name, snoozed, switch) JOIN beltline.queue q ON q.name = i.name
    WHERE i.snoozed > 0 OR i.switch IS NOT NULL;
  DELETE FROM beltline.delta WHERE queue IN (SELECT n FROM beltline.queue WHERE name = ANY(p_name));
  UPDATE beltline.tally t SET done = i.done FROM unnest(p_name, p_done) AS i(name, done) JOIN beltline.queue q ON q.name = i.name WHERE t.queue = q.n;
  PERFORM setval('beltline.hand_out', greatest(p_hand_outs, last_value)) FROM beltline.hand_out;
  PERFORM setval('beltline.place', greatest(p_next, last_value)) FROM beltline.place;
  RETURN true;
END $$;

-- Until when nothing of a queue is handed out, and where its kill switch stands: the fields of MovedSwitch in their order.
CREATE OR REPLACE FUNCTION beltline._shut(p_queue int, p_snoozed bigint, p_switch jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM beltline._gate(p_queue);
  UPDATE beltline.flow SET snoozed = p_snoozed WHERE queue = p_queue;
  UPDATE beltline.flow SET tripped = (p_switch->>0)::bigint, trying = (p_switch->>1)::boolean, succeeded = (p_switch->>2)::int, pauses = (p_switch->>3)::int,
    judged = (p_switch->>4)::bigint, ended = (p_switch->>5)::bigint, failed = (p_switch->>6)::bigint, ended_before = (p_switch->>7)::bigint,
    failed_before = (p_switch->>8)::bigint WHERE queue = p_queue AND p_switch IS NOT NULL;
END $$;

CREATE OR REPLACE FUNCTION beltline.put_runs(
  p_before text, p_after text, p_level int, p_id uuid[], p_chain text[], p_state smallint[], p_open int[], p_dead int[], p_entered bigint[], p_ended bigint[],
  p_result bytea[], p_until bigint[], p_why text[], p_failure bytea[]) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  IF NOT beltline.set_seal(p_before, p_after, p_level) THEN
    RETURN false;
  END IF;
  WITH new AS (
    INSERT INTO beltline.run(id, chain, state, counted, open, dead, entered, ended, last, touched, result, result_until, why, failure)
      SELECT id, chain, state, state, open, dead, entered, ended, 0, false, result, until, why, failure
        FROM unnest(p_id, p_chain, p_state, p_open, p_dead, p_entered, p_ended, p_result, p_until, p_why, p_failure)
          AS r(id, chain, state, open, dead, entered, ended, result, until, why, failure)
      ON CONFLICT (id) DO NOTHING RETURNING chain, state)
  INSERT INTO beltline.run_delta(chain, state, count) SELECT chain, state, count(*) FROM new GROUP BY chain, state;
  RETURN true;
END $$;

-- What the gathers send, and the gathers, as `send` gets them. x: a row per gather; y: a row per part.
CREATE OR REPLACE FUNCTION beltline.put_gathers(
  p_before text, p_after text, p_level int, p_queues text[], p_tasks text[], p_chains text[],
  p_id uuid[], p_queue int[], p_task int[], p_prio smallint[], p_due bigint[], p_delay bigint[], p_expires bigint[], p_group bytea[], p_dedup bytea[],
  p_dedup_ms bigint[], p_run uuid[], p_chain int[], p_gather uuid[], p_part int[], p_head bytea[], p_body bytea[],
  g_id uuid[], g_run uuid[], g_chain text[], g_expected int[], g_on_dead smallint[], g_outer uuid[], g_outer_part int[], g_ttl bigint[], g_data bytea[], g_then int[],
  g_prefix bytea[], g_suffix bytea[], x_missing int[], x_dead int[], x_fired boolean[], y_gather uuid[], y_part int[], y_dead boolean[], y_value bytea[], p_flow jsonb[] DEFAULT NULL)
  RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE v_items beltline.item[]; v_gathers beltline.opened[]; v_new uuid[];
BEGIN
  IF NOT beltline.set_seal(p_before, p_after, p_level) THEN
    RETURN false;
  END IF;
  v_items := beltline._items(beltline._queues(p_queues), p_tasks, p_chains, NULL, p_id, p_queue, p_task, p_prio, p_due, p_delay, p_expires, p_group, p_dedup, p_dedup_ms,
    p_run, p_chain, p_gather, p_part, p_head, p_body, p_flow);
  v_gathers := beltline._gathers(v_items, NULL, g_id, g_run, g_chain, g_expected, g_on_dead, g_outer, g_outer_part, g_ttl, g_data, g_then, g_prefix, g_suffix);
  WITH new AS (
    INSERT INTO beltline.gather(id, run, outer_gather, ttl, expected, missing, dead, outer_part, on_dead, fired, data, then_item, prefix, suffix)
      SELECT id, run, outer_gather, ttl, expected, x_missing[place], x_dead[place], outer_part, on_dead, x_fired[place], data,
          CASE WHEN (then_item).id IS NOT NULL THEN then_item END, prefix, suffix
        FROM unnest(v_gathers) WITH ORDINALITY
          AS g(ord, id, run, chain, expected, on_dead, outer_gather, outer_part, ttl, data, then_item, prefix, suffix, place) ORDER BY place
      ON CONFLICT (id) DO NOTHING RETURNING id)
  SELECT array_agg(id) INTO v_new FROM new;
  INSERT INTO beltline.gather_part(gather, part, dead, value)
    SELECT gather, part, dead, value FROM unnest(y_gather, y_part, y_dead, y_value) AS y(gather, part, dead, value) WHERE gather = ANY(v_new);
  RETURN true;
END $$;

-- p: a row per message; a: a row per attempt.
CREATE OR REPLACE FUNCTION beltline.put_messages(
  p_before text, p_after text, p_level int,
  p_id uuid[], p_seq bigint[], p_state smallint[], p_blocked boolean[], p_queue text[], p_task text[], p_prio smallint[], p_group bytea[], p_run uuid[], p_gather uuid[],
  p_part int[], p_head bytea[], p_body bytea[], p_sent bigint[], p_epoch int[], p_failed int[], p_lost int[], p_rank bigint[], p_since bigint[], p_due bigint[],
  p_expires bigint[], p_started bigint[], p_worker text[], p_ran float4[], p_outcome smallint[], p_result bytea[], p_until bigint[], p_why text[], p_error text[],
  p_asked text[], p_progress bytea[],
  a_id uuid[], a_epoch int[], a_outcome text[], a_worker text[], a_started bigint[], a_ended bigint[], a_ran float8[], a_note text[], a_failure bytea[],
  p_flow jsonb[] DEFAULT NULL)
  RETURNS boolean LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE v_new uuid[];
BEGIN
  IF NOT beltline.set_seal(p_before, p_after, p_level) THEN
    RETURN false;
  END IF;
  INSERT INTO beltline.name(text) SELECT DISTINCT w FROM unnest(p_worker || a_worker) w WHERE w IS NOT NULL ON CONFLICT DO NOTHING;
  PERFORM beltline._flow_lanes(array_agg(q.n), array_agg(i.flow), array_agg(i.prio)) FROM unnest(p_queue, p_flow, p_prio, p_state) AS i(queue, flow, prio, state)
    JOIN beltline.queue q ON q.name = i.queue WHERE i.state <> 3 AND beltline._is_shaped(i.flow) HAVING count(*) > 0;
  WITH m AS MATERIALIZED (
    SELECT i.*, q.n AS queue, w.n AS worker,
        ((i.group_key IS NOT NULL)::int + 2 * (i.run IS NOT NULL)::int + 4 * (i.gather IS NOT NULL)::int + 8 * coalesce(beltline._is_shaped(i.flow), false)::int)::smallint AS flags
      FROM unnest(p_id, p_seq, p_state, p_blocked, p_queue, p_task, p_prio, p_group, p_run, p_gather, p_part, p_head, p_body, p_sent, p_epoch, p_failed, p_lost, p_rank,
          p_since, p_due, p_expires, p_started, p_worker, p_ran, p_outcome, p_result, p_until, p_why, p_error, p_asked, p_progress, p_flow)
        AS i(id, seq, state, blocked, queue_name, task, prio, group_key, run, gather, part, head, body, sent, epoch, failed, lost, rank,
          since, due, expires, started, worker_name, ran, outcome, result, result_until, why, error, reason, value, flow)
      JOIN beltline.queue q ON q.name = i.queue_name LEFT JOIN beltline.name w ON w.text = i.worker_name),
  kept AS (
    INSERT INTO beltline.body(id, seq, sent, queue, prio, flags, expires, part, run, gather, task, group_key, head, body)
      SELECT id, seq, sent, queue, prio, flags, expires, part, run, gather, task, group_key, head, body FROM m ON CONFLICT (id) DO NOTHING RETURNING id),
  new AS (SELECT m.* FROM m JOIN kept ON kept.id = m.id),
  r AS (INSERT INTO beltline.ready(rank, seq, since, id, queue, epoch, failed, lost, flags, expires, why, error)
    SELECT rank, seq, since, id, queue, epoch, failed, lost, flags, expires, why, error FROM new WHERE state = 1 AND NOT blocked),   -- those with a lane go on into it
  d AS (INSERT INTO beltline.delayed(rank, seq, since, id, queue, epoch, failed, lost, flags, expires, why, error)
    SELECT rank, seq, since, id, queue, epoch, failed, lost, flags, expires, why, error FROM new WHERE state = 0 AND NOT blocked),
  b AS (INSERT INTO beltline.blocked(rank, seq, since, id, queue, epoch, failed, lost, flags, expires, why, error, was, group_key)
    SELECT rank, seq, since, id, queue, epoch, failed, lost, flags, expires, why, error, state, group_key FROM new WHERE blocked),
  l AS (INSERT INTO beltline.lease(id, due, rank, seq, since, started, queue, epoch, failed, lost, worker, flags, error)
    SELECT id, due, rank, seq, since, coalesce(started, due), queue, epoch, failed, lost, worker, flags, error FROM new WHERE state = 2),
  e AS (INSERT INTO beltline.done(id, ended, started, seq, result_until, queue, epoch, failed, lost, worker, ran, outcome, flags, why, error, result)
    SELECT id, due, started, seq, result_until, queue, epoch, failed, lost, worker, ran, outcome, flags, why, error, result FROM new WHERE state = 3),
  x AS (INSERT INTO beltline.dead(id, seq, ended, queue, epoch, failed, lost, flags, why, error, group_key)
    SELECT id, seq, due, queue, epoch, failed, lost, flags, why, error, group_key FROM new WHERE state = 4),
  lanes AS (INSERT INTO beltline.lane AS t (queue, group_key, head)
    SELECT queue, group_key, (array_agg(id) FILTER (WHERE NOT blocked))[1] FROM new WHERE group_key IS NOT NULL AND state <= 2 GROUP BY queue, group_key
    ON CONFLICT (queue, group_key) DO UPDATE SET head = coalesce(EXCLUDED.head, t.head)),
  k AS (INSERT INTO beltline.asked(id, reason) SELECT id, reason FROM new WHERE reason IS NOT NULL),
  v AS (INSERT INTO beltline.progress(id, value) SELECT id, value FROM new WHERE value IS NOT NULL),
  counted AS (INSERT INTO beltline.delta(queue, ready, delayed, leased, dead, done, parked)
    SELECT queue, count(*) FILTER (WHERE state = 1), count(*) FILTER (WHERE state = 0), count(*) FILTER (WHERE state = 2), count(*) FILTER (WHERE state = 4), 0,
        count(*) FILTER (WHERE state <= 1 AND beltline._is_parked(why)) FROM new WHERE state <> 3 GROUP BY queue)   -- the done ones were counted with their queue
  SELECT array_agg(id) INTO v_new FROM new;
  IF p_flow IS NOT NULL THEN
    PERFORM beltline._flow_arrived(v_new, p_id, p_flow);
  END IF;
  INSERT INTO beltline.attempt(id, started, ended, epoch, worker, ran, outcome, note, failure)
    SELECT a.id, a.started, a.ended, a.epoch, w.n, a.ran, a.outcome, a.note, a.failure
      FROM unnest(a_id, a_epoch, a_outcome, a_worker, a_started, a_ended, a_ran, a_note, a_failure) WITH ORDINALITY
        AS a(id, epoch, outcome, worker, started, ended, ran, note, failure, place) LEFT JOIN beltline.name w ON w.text = a.worker
      WHERE a.id = ANY(v_new) ORDER BY a.place;
  RETURN true;
END $$;

CREATE OR REPLACE FUNCTION beltline.put_keys(p_before text, p_after text, p_level int, p_queue text[], p_key bytea[], p_id uuid[], p_until bigint[]) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  IF NOT beltline.set_seal(p_before, p_after, p_level) THEN
    RETURN false;
  END IF;
  INSERT INTO beltline.dedup(queue, key, id, until)
    SELECT q.n, k.key, k.id, k.until FROM unnest(p_queue, p_key, p_id, p_until) AS k(queue, key, id, until) JOIN beltline.queue q ON q.name = k.queue ON CONFLICT DO NOTHING;
  RETURN true;
END $$;

CREATE OR REPLACE FUNCTION beltline.put_known(p_before text, p_after text, p_level int, p_id uuid[], p_ended bigint[]) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  IF NOT beltline.set_seal(p_before, p_after, p_level) THEN
    RETURN false;
  END IF;
  INSERT INTO beltline.known(id, ended) SELECT id, ended FROM unnest(p_id, p_ended) AS k(id, ended) ON CONFLICT DO NOTHING;
  RETURN true;
END $$;
