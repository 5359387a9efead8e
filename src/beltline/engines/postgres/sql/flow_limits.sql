-- Limits and buckets, kill switches, snoozes, and what is told to lanes. A place of a bucket is held by a lease that is not over; nobody counts places down.

-- The cost of this start in microseconds of the bucket. Source: core.flow.Limit.takes_us.
CREATE FUNCTION beltline._takes(p_cost float8, p_interval bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT floor(least(p_cost * p_interval + 0.5, 1e17::float8))::bigint
$$;

-- Leases that hold a place of a bucket, and when the first of them is over.
CREATE FUNCTION beltline._running(p_now bigint, p_name text, p_key text, OUT running bigint, OUT soonest bigint) LANGUAGE plpgsql STABLE AS $$
BEGIN
  SELECT count(*), min(due) INTO running, soonest FROM (
    SELECT l.due FROM beltline.flow_hold h CROSS JOIN LATERAL (SELECT due FROM beltline.lease x WHERE x.id = h.id OFFSET 0) l
      WHERE h.name = p_name AND h.key = p_key AND l.due > p_now
    UNION ALL SELECT l.due FROM beltline.flow_limited q CROSS JOIN LATERAL (SELECT id, due FROM beltline.lease x WHERE x.queue = q.queue AND x.due > p_now OFFSET 0) l
      WHERE p_key = '' AND q.name = p_name AND NOT EXISTS (SELECT FROM beltline.flow_hold h WHERE h.id = l.id AND h.name = p_name AND h.key = '')) places;
END $$;

-- The first bucket of these claims that does not allow a start now, and the instant before which it will not. All NULL: all allow it.
CREATE FUNCTION beltline._refuses(p_now bigint, p_names text[], p_costs float8[], OUT name text, OUT key text, OUT until bigint) LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE v_limit beltline.flow_limit; v_now bigint := p_now * 1000; v_tat bigint; v_takes bigint; v_held bigint; v_running bigint; v_soonest bigint;
BEGIN
  FOR i IN 1..coalesce(cardinality(p_costs), 0) LOOP
    SELECT * INTO v_limit FROM beltline.flow_limit l WHERE l.name = p_names[2 * i + 1];
    CONTINUE WHEN NOT FOUND;
    IF v_limit.most IS NOT NULL THEN
      v_held := v_limit.most;
      IF p_names[2 * i + 2] <> '' OR NOT EXISTS (SELECT FROM beltline.flow_limited q WHERE q.name = v_limit.name) THEN   -- those that are over too: quickly counted
        SELECT count(*) INTO v_held FROM (SELECT FROM beltline.flow_hold h WHERE h.name = v_limit.name AND h.key = p_names[2 * i + 2] LIMIT v_limit.most) h;
      END IF;
      IF v_held >= v_limit.most THEN
        SELECT r.running, r.soonest INTO v_running, v_soonest FROM beltline._running(p_now, v_limit.name, p_names[2 * i + 2]) r;
        IF v_running >= v_limit.most THEN
          name := v_limit.name; key := p_names[2 * i + 2]; until := coalesce(v_soonest, 9000000000000000000);
          RETURN;
        END IF;
      END IF;
    END IF;
    IF v_limit.interval_us > 0 THEN
      SELECT tat INTO v_tat FROM beltline.flow_bucket b WHERE b.name = v_limit.name AND b.key = p_names[2 * i + 2];
      v_takes := beltline._takes(p_costs[i], v_limit.interval_us);
      v_tat := greatest(v_tat, v_now) + v_takes - greatest(v_limit.burst_us, v_takes);
      IF v_tat > v_now THEN
        name := v_limit.name; key := p_names[2 * i + 2]; until := (v_tat + 999) / 1000;
        RETURN;
      END IF;
    END IF;
  END LOOP;
END $$;

-- A start: the buckets are charged, the message holds its places.
CREATE FUNCTION beltline._start(p_now bigint, p_id uuid, p_names text[], p_costs float8[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1..coalesce(cardinality(p_costs), 0) LOOP
    INSERT INTO beltline.flow_hold(id, name, key) VALUES (p_id, p_names[2 * i + 1], p_names[2 * i + 2]) ON CONFLICT DO NOTHING;
    INSERT INTO beltline.flow_bucket AS b (name, key, tat)
      SELECT l.name, p_names[2 * i + 2], p_now * 1000 + beltline._takes(p_costs[i], l.interval_us) FROM beltline.flow_limit l
        WHERE l.name = p_names[2 * i + 1] AND l.interval_us > 0
      ON CONFLICT (name, key) DO UPDATE SET tat = greatest(b.tat, p_now * 1000) + EXCLUDED.tat - p_now * 1000;
  END LOOP;
END $$;

-- So many starts in a queue, charged to the limits of the whole queue.
CREATE FUNCTION beltline._start_in(p_now bigint, p_queue int, p_count int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO beltline.flow_bucket AS b (name, key, tat)
    SELECT l.name, '', p_now * 1000 + p_count * l.interval_us FROM beltline.flow_limited q JOIN beltline.flow_limit l ON l.name = q.name
      WHERE q.queue = p_queue AND l.interval_us > 0 ORDER BY l.name
    ON CONFLICT (name, key) DO UPDATE SET tat = greatest(b.tat, p_now * 1000) + EXCLUDED.tat - p_now * 1000;
END $$;

-- How many starts the limits of a whole queue allow; when it will be more, if time alone decides; which of them is the narrowest.
CREATE FUNCTION beltline._limited(p_now bigint, p_queue int, OUT room bigint, OUT opens bigint, OUT name text) LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE v_limit record; v_left bigint; v_fits bigint; v_soonest bigint; v_now bigint := p_now * 1000;
BEGIN
  room := 1000000000;
  FOR v_limit IN SELECT l.name, l.most, l.interval_us, l.burst_us, greatest(coalesce((SELECT tat FROM beltline.flow_bucket b WHERE b.name = l.name AND b.key = ''), 0), v_now) AS tat
      FROM beltline.flow_limited q JOIN beltline.flow_limit l ON l.name = q.name WHERE q.queue = p_queue ORDER BY q.place LOOP
    v_left := 1000000000;
    v_fits := 1000000000;
    IF v_limit.most IS NOT NULL THEN
      SELECT v_limit.most - r.running, r.soonest INTO v_left, v_soonest FROM beltline._running(p_now, v_limit.name, '') r;
      opens := CASE WHEN v_left < 1 THEN least(opens, v_soonest) ELSE opens END;
    END IF;
    IF v_limit.interval_us > 0 THEN
      v_fits := greatest(0, (v_now + v_limit.burst_us - v_limit.tat) / v_limit.interval_us);
      IF v_fits < 1 THEN
        opens := least(opens, (v_limit.tat + v_limit.interval_us - greatest(v_limit.burst_us, v_limit.interval_us) + 999) / 1000);
      END IF;
    END IF;
    IF least(v_left, v_fits) < room THEN
      room := least(v_left, v_fits);
      name := v_limit.name;
    END IF;
  END LOOP;
END $$;

-- ------------------------------------------------------------------------------------------------------------- what is told to lanes
CREATE FUNCTION beltline._verb() RETURNS bigint LANGUAGE sql STABLE AS $$ SELECT pg_current_xact_id()::text::bigint $$;

-- Messages with a lane went from one state to another (0 delayed, 1 ready, 2 leased, 3 done, 4 dead).
CREATE FUNCTION beltline._flow_moved(p_ids uuid[], p_from int, p_to int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_names text[]; v_keys text[]; v_places int[];
BEGIN
  INSERT INTO beltline.flow_event(queue, verb, lane, ready, leased, messages)
    SELECT queue, beltline._verb(), lane, count(*) * ((p_to = 1)::int - (p_from = 1)::int), count(*) * ((p_to = 2)::int - (p_from = 2)::int), -count(*) * (p_to = 3)::int
      FROM unnest(p_ids) AS i(id) CROSS JOIN LATERAL (SELECT queue, lane FROM beltline.flow_message x WHERE x.id = i.id OFFSET 0) m
      WHERE p_from IN (1, 2) OR p_to IN (1, 2, 3) GROUP BY queue, lane;
  IF p_to = 3 THEN
    DELETE FROM beltline.flow_message WHERE id = ANY(p_ids);
  END IF;
  IF p_from = 2 THEN
    WITH gone AS (DELETE FROM beltline.flow_hold WHERE id = ANY(p_ids) RETURNING name, key),
    freed AS (SELECT name, key, count(*)::int AS places FROM gone GROUP BY name, key)
      SELECT array_agg(name), array_agg(key), array_agg(places) INTO v_names, v_keys, v_places FROM freed;
    PERFORM beltline._given_back(v_names, v_keys, v_places) WHERE v_names IS NOT NULL;
  END IF;
END $$;

-- Places are free again: every queue whose lanes may wait for one is told, and looked at if one does.
CREATE FUNCTION beltline._given_back(p_names text[], p_keys text[], p_places int[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_queues int[];
BEGIN
  WITH given AS (
    SELECT i.name, i.key, i.places, c.queue FROM unnest(p_names, p_keys, p_places) AS i(name, key, places)
      CROSS JOIN LATERAL (SELECT FROM beltline.flow_limit l WHERE l.name = i.name AND l.most IS NOT NULL OFFSET 0) l
      CROSS JOIN LATERAL (SELECT queue FROM beltline.flow_claimed x WHERE x.name = i.name OFFSET 0) c),
  told AS (INSERT INTO beltline.flow_event(queue, verb, name, key, places) SELECT queue, beltline._verb(), name, key, places FROM given)
  SELECT array_agg(DISTINCT queue) INTO v_queues FROM given g
    WHERE EXISTS (SELECT FROM beltline.flow_lane l WHERE l.closed_limit = g.name AND l.closed_key = g.key AND l.queue = g.queue);
  PERFORM beltline._woken(q) FROM unnest(v_queues) q;
END $$;

-- So many leases of a queue have ended: places of the limits of the whole queue.
CREATE FUNCTION beltline._left(p_queue int, p_count int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_names text[];
BEGIN
  SELECT array_agg(l.name) INTO v_names FROM beltline.flow_limited q JOIN beltline.flow_limit l ON l.name = q.name WHERE q.queue = p_queue AND l.most IS NOT NULL;
  IF v_names IS NOT NULL THEN
    PERFORM beltline._given_back(v_names, array_fill(''::text, ARRAY[cardinality(v_names)]), array_fill(p_count, ARRAY[cardinality(v_names)]));
    PERFORM beltline._woken(queue) FROM (SELECT DISTINCT queue FROM beltline.flow_limited WHERE name = ANY(v_names)) named;
  END IF;
END $$;

-- A settle has ended these deliveries; the rows of flow_message are still there. s_: columns of the settle, p_done: which of its places took effect.
CREATE FUNCTION beltline._flow_settled(p_now bigint, p_facts beltline.fact[], p_done int[], s_ran float8[], s_op smallint[], s_snooze bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_queue record;
BEGIN
  FOR v_queue IN SELECT f.queue, count(*)::int AS all_of_it, count(*) FILTER (WHERE coalesce(s_op[f.place], 0) <> 2)::int AS ended,
        count(*) FILTER (WHERE s_op[f.place] IN (1, 3))::int AS failed, max(CASE WHEN s_op[f.place] = 2 THEN s_snooze[f.place] END) AS snooze
      FROM unnest(p_facts, p_done) AS f(state, blocked, queue, seq, id, rank, since, epoch, failed, lost, flags, expires, why, error, due, started, worker, place)
      GROUP BY f.queue ORDER BY f.queue LOOP
    PERFORM beltline._snooze(p_now, v_queue.queue, v_queue.snooze) WHERE v_queue.snooze > 0;
    INSERT INTO beltline.flow_ended(queue, at, ended, failed)
      SELECT v_queue.queue, p_now, v_queue.ended, v_queue.failed FROM beltline.flow WHERE queue = v_queue.queue AND flow.share IS NOT NULL AND v_queue.ended > 0;
    PERFORM beltline._left(v_queue.queue, v_queue.all_of_it) FROM beltline.flow WHERE queue = v_queue.queue AND limited;
  END LOOP;
  INSERT INTO beltline.flow_event(queue, verb, lane, work, at)
    SELECT f.queue, beltline._verb(), m.lane, sum(floor(s_ran[f.place] * 1000 + 0.5)::bigint), p_now
      FROM unnest(p_facts, p_done) AS f(state, blocked, queue, seq, id, rank, since, epoch, failed, lost, flags, expires, why, error, due, started, worker, place)
        LEFT JOIN LATERAL (SELECT lane FROM beltline.flow_message x WHERE x.id = f.id AND f.flags & 8 <> 0 OFFSET 0) m ON true
      WHERE coalesce(s_op[f.place], 0) <> 2 AND s_ran[f.place] > 0 AND EXISTS (SELECT FROM beltline.flow g WHERE g.queue = f.queue AND g.shaped)
      GROUP BY f.queue, m.lane;
END $$;

-- ------------------------------------------------------------------------------------------------------------- kill switch and snooze
-- The switch after what ended since it was judged last. The rule is that of core.flow.KillSwitch.
CREATE FUNCTION beltline._judged(g beltline.flow) RETURNS beltline.flow LANGUAGE plpgsql STABLE AS $$
DECLARE e record; v_window bigint; v_pause bigint;
BEGIN
  FOR e IN SELECT at, ended, failed FROM beltline.flow_ended WHERE queue = g.queue ORDER BY n LOOP
    CONTINUE WHEN g.share IS NULL OR g.tripped > e.at;   -- of deliveries that were out when it tripped
    v_pause := NULL;
    IF g.trying THEN
      g.succeeded := g.succeeded + e.ended - e.failed;
      IF e.failed = 0 AND g.succeeded >= g.tries THEN
        g := beltline._closed(g);
      END IF;
    ELSE
      v_window := e.at / g.half;
      IF v_window <> g.judged THEN
        g.ended_before := CASE WHEN v_window = g.judged + 1 THEN g.ended ELSE 0 END;
        g.failed_before := CASE WHEN v_window = g.judged + 1 THEN g.failed ELSE 0 END;
        g.judged := v_window; g.ended := 0; g.failed := 0;
      END IF;
      g.ended := g.ended + e.ended;
      g.failed := g.failed + e.failed;
    END IF;
    IF g.trying AND e.failed > 0 OR NOT g.trying AND g.ended + g.ended_before >= g.least AND g.failed + g.failed_before >= g.share * (g.ended + g.ended_before) THEN
      v_pause := floor(g.pause * 1000 * least(2.0 ^ g.pauses, 10))::bigint;
      v_window := least(g.pauses + 1, 10);
      g := beltline._closed(g);
      g.tripped := e.at + v_pause; g.trying := true; g.pauses := v_window;
    END IF;
  END LOOP;
  RETURN g;
END $$;

CREATE FUNCTION beltline._closed(g beltline.flow) RETURNS beltline.flow LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  g.tripped := 0; g.trying := false; g.succeeded := 0; g.pauses := 0;
  g.judged := 0; g.ended := 0; g.failed := 0; g.ended_before := 0; g.failed_before := 0;
  RETURN g;
END $$;

-- Write it down. The row of `flow` is locked.
CREATE FUNCTION beltline._judge_switch(p_queue int) RETURNS beltline.flow LANGUAGE plpgsql AS $$
DECLARE g beltline.flow; v_last bigint := (SELECT max(n) FROM beltline.flow_ended WHERE queue = p_queue);
BEGIN
  SELECT * INTO g FROM beltline.flow WHERE queue = p_queue;
  IF v_last IS NOT NULL THEN
    g := beltline._judged(g);
    UPDATE beltline.flow SET tripped = g.tripped, trying = g.trying, succeeded = g.succeeded, pauses = g.pauses, judged = g.judged, ended = g.ended, failed = g.failed,
      ended_before = g.ended_before, failed_before = g.failed_before WHERE queue = p_queue;
    DELETE FROM beltline.flow_ended WHERE queue = p_queue AND n <= v_last;
  END IF;
  RETURN g;
END $$;

-- What gates a queue, as it stands now. The switch is written down by receives that hold the row anyway, or now and then, where nobody does.
CREATE FUNCTION beltline._gated(p_queue int) RETURNS beltline.flow LANGUAGE plpgsql AS $$
DECLARE g beltline.flow;
BEGIN
  SELECT * INTO g FROM beltline.flow WHERE queue = p_queue;
  IF g.share IS NULL THEN
    RETURN g;
  END IF;
  IF (SELECT count(*) FROM (SELECT FROM beltline.flow_ended WHERE queue = p_queue LIMIT 50) ends) = 50 THEN
    PERFORM FROM beltline.flow WHERE queue = p_queue FOR NO KEY UPDATE SKIP LOCKED;
    IF FOUND THEN
      RETURN beltline._judge_switch(p_queue);
    END IF;
  END IF;
  RETURN beltline._judged(g);
END $$;

-- Until when it is left alone; NULL: it has no flow control.
CREATE FUNCTION beltline._shut_until(p_queue int) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE g beltline.flow;
BEGIN
  IF EXISTS (SELECT FROM beltline.queue WHERE n = p_queue AND gated) THEN
    g := beltline._gated(p_queue);
    RETURN greatest(g.snoozed, g.tripped);
  END IF;
  RETURN NULL;
END $$;

CREATE FUNCTION beltline._gate(p_queue int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO beltline.flow(queue) VALUES (p_queue) ON CONFLICT DO NOTHING;
  UPDATE beltline.queue SET gated = true WHERE n = p_queue AND NOT gated;
END $$;

CREATE FUNCTION beltline._snooze(p_now bigint, p_queue int, p_for bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE v_until bigint;
BEGIN
  PERFORM beltline._gate(p_queue) WHERE NOT EXISTS (SELECT FROM beltline.flow WHERE queue = p_queue);
  UPDATE beltline.flow SET snoozed = greatest(snoozed, p_now + p_for) WHERE queue = p_queue RETURNING snoozed INTO v_until;
  RETURN v_until;
END $$;

-- Until when; NULL: not declared.
CREATE FUNCTION beltline.snooze(p_now bigint, p_queue text, p_for bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE v_now bigint := beltline._now(p_now); v_n int := (SELECT n FROM beltline.queue WHERE name = p_queue);
BEGIN
  RETURN CASE WHEN v_n IS NOT NULL THEN beltline._snooze(v_now, v_n, p_for) END;
END $$;

-- Resume ends snooze and switch.
CREATE FUNCTION beltline._reopen(p_queue int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM FROM beltline.flow WHERE queue = p_queue FOR NO KEY UPDATE;
  IF FOUND THEN
    DELETE FROM beltline.flow_ended WHERE queue = p_queue;
    UPDATE beltline.flow SET snoozed = 0, tripped = 0, trying = false, succeeded = 0, pauses = 0, judged = 0, ended = 0, failed = 0, ended_before = 0, failed_before = 0
      WHERE queue = p_queue;
  END IF;
END $$;

-- What a declaration says: {"l": names of limits, "k": [share, least, half of the window in ms, pause in s, tries] or null}.
CREATE FUNCTION beltline._flow_declare(p_queue int, p_flow jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_names text[] := ARRAY(SELECT jsonb_array_elements_text(p_flow->'l')); v_rule jsonb := nullif(p_flow->'k', 'null');
BEGIN
  IF v_names = '{}' AND v_rule IS NULL AND NOT EXISTS (SELECT FROM beltline.flow WHERE queue = p_queue) THEN
    RETURN;
  END IF;
  PERFORM beltline._gate(p_queue);
  PERFORM FROM beltline.flow WHERE queue = p_queue FOR NO KEY UPDATE;
  PERFORM beltline._judge_switch(p_queue);   -- by the rule there was
  UPDATE beltline.flow SET limited = v_names <> '{}', share = (v_rule->>0)::float8, least = (v_rule->>1)::int, half = (v_rule->>2)::bigint, pause = (v_rule->>3)::float8,
    tries = (v_rule->>4)::int WHERE queue = p_queue;
  DELETE FROM beltline.flow_limited WHERE queue = p_queue;
  INSERT INTO beltline.flow_limited(queue, name, place) SELECT p_queue, name, min(place) FROM unnest(v_names) WITH ORDINALITY AS n(name, place) GROUP BY name;
END $$;

-- ------------------------------------------------------------------------------------------------------------- limits at run time
-- Lanes that these limits have closed open; the numbers of each are locked before their row changes. Order: `flow` of the queues, then the limits.
CREATE FUNCTION beltline._hold_limits(p_names text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM FROM beltline.flow WHERE queue IN (SELECT queue FROM beltline.flow_claimed WHERE name = ANY(p_names)) ORDER BY queue FOR NO KEY UPDATE;
  PERFORM FROM beltline.flow_limit WHERE name = ANY(p_names) ORDER BY name FOR NO KEY UPDATE;
END $$;

CREATE FUNCTION beltline._limits_changed(p_names text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  WITH opened AS (UPDATE beltline.flow_lane SET closed_limit = NULL, closed_key = NULL, closed_until = NULL, closed_at = NULL
      WHERE closed_limit = ANY(p_names) RETURNING queue, n)
    INSERT INTO beltline.flow_event(queue, verb, lane) SELECT queue, beltline._verb(), n FROM opened;
  PERFORM beltline._woken(queue) FROM (SELECT queue FROM beltline.flow_claimed WHERE name = ANY(p_names)
    UNION SELECT queue FROM beltline.flow_limited WHERE name = ANY(p_names)) named;
END $$;

-- p_given: an operator says so; else the code, and only what it says differently than before counts.
CREATE FUNCTION beltline.put_limits(p_now bigint, p_given boolean, p_name text[], p_data bytea[], p_interval bigint[], p_burst bigint[], p_most int[]) RETURNS boolean LANGUAGE plpgsql
  SET enable_seqscan = off SET jit = off AS $$
DECLARE v_names text[];
BEGIN
  PERFORM beltline._now(p_now);
  PERFORM pg_advisory_xact_lock(1111837782, tableoid::int) FROM beltline.clock;   -- "BELT" + 2: two that make the same one
  SELECT array_agg(i.name ORDER BY i.name) INTO v_names FROM unnest(p_name, p_data) AS i(name, data) LEFT JOIN beltline.flow_limit l ON l.name = i.name
    WHERE CASE WHEN p_given THEN true ELSE l.declared IS DISTINCT FROM i.data END;
  IF v_names IS NULL THEN
    RETURN false;
  END IF;
  PERFORM beltline._hold_limits(v_names);
  INSERT INTO beltline.flow_limit AS l (name, declared, given, interval_us, burst_us, most)
    SELECT name, CASE WHEN NOT p_given THEN data END, CASE WHEN p_given THEN data END, interval_us, burst_us, most
      FROM unnest(p_name, p_data, p_interval, p_burst, p_most) AS i(name, data, interval_us, burst_us, most) WHERE name = ANY(v_names)
    ON CONFLICT (name) DO UPDATE SET declared = coalesce(EXCLUDED.declared, l.declared), given = coalesce(EXCLUDED.given, l.given),
      interval_us = CASE WHEN p_given OR l.given IS NULL THEN EXCLUDED.interval_us ELSE l.interval_us END,
      burst_us = CASE WHEN p_given OR l.given IS NULL THEN EXCLUDED.burst_us ELSE l.burst_us END,
      most = CASE WHEN p_given OR l.given IS NULL THEN EXCLUDED.most ELSE l.most END;
  PERFORM beltline._limits_changed(v_names);
  RETURN true;
END $$;

-- Back to what the code says (its numbers are given, and p_declared is what they were read out of), or away. NULL: no such limit; false: it has changed meanwhile.
CREATE FUNCTION beltline.reset_limit(p_now bigint, p_name text, p_declared bytea, p_interval bigint, p_burst bigint, p_most int) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE v_declared bytea;
BEGIN
  PERFORM beltline._now(p_now);
  PERFORM beltline._hold_limits(ARRAY[p_name]);
  SELECT declared INTO v_declared FROM beltline.flow_limit WHERE name = p_name;
  IF NOT FOUND THEN
    RETURN NULL;
  ELSIF v_declared IS DISTINCT FROM p_declared THEN
    RETURN false;
  ELSIF v_declared IS NULL THEN
    DELETE FROM beltline.flow_limit WHERE name = p_name;
  ELSE
    UPDATE beltline.flow_limit SET given = NULL, interval_us = p_interval, burst_us = p_burst, most = p_most WHERE name = p_name;
  END IF;
  PERFORM beltline._limits_changed(ARRAY[p_name]);
  RETURN true;
END $$;

-- Limits that a move brings; one that is there already is left as it is.
CREATE FUNCTION beltline.put_moved_limits(p_before text, p_after text, p_level int, p_name text[], p_declared bytea[], p_given bytea[], p_interval bigint[], p_burst bigint[], p_most int[])
  RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  IF NOT beltline.set_seal(p_before, p_after, p_level) THEN
    RETURN false;
  END IF;
  INSERT INTO beltline.flow_limit(name, declared, given, interval_us, burst_us, most)
    SELECT * FROM unnest(p_name, p_declared, p_given, p_interval, p_burst, p_most) ON CONFLICT DO NOTHING;
  RETURN true;
END $$;
