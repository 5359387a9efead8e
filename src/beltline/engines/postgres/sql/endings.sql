-- What every verb is made of: the engine's time, where a message is, what its end brings about. The laws are those at the top of engines/protocol.py.
--
-- Order of locks, everywhere: ownership rows, lanes, runs (sorted), gathers of those runs; what flow control adds stands in flow.sql. Where a run that fails drags other messages along, the order cannot
-- be kept: PostgreSQL then ends one of the two transactions (40P01), nothing of it has happened, and the engine repeats it.

-- The engine's time. Never behind `last`; when the clock of the server was set back, `skew` makes up for it and time goes on at its pace. `last` is noted once
-- a second, and never waited for. p_now: the clock of a test, noted always. p_allowed: the highest seal of a move under which the caller may go on.
CREATE OR REPLACE FUNCTION beltline._now(p_now bigint, p_allowed int DEFAULT 0) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  v_raw bigint := coalesce(p_now, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint);
  v_grain bigint := CASE WHEN p_now IS NULL THEN 1000 ELSE 0 END;
  v_last bigint; v_skew bigint; v_seal int;
BEGIN
  IF current_setting('synchronous_commit') IN ('off', 'local') THEN
    PERFORM set_config('synchronous_commit', 'on', true);   -- turned off since the engine looked: what is stored here is promised to be durable
  END IF;
  SELECT last, skew, seal INTO v_last, v_skew, v_seal FROM beltline.clock;
  IF v_seal > p_allowed THEN
    PERFORM beltline._unsealed(v_seal, p_allowed);
  END IF;
  IF v_raw + v_skew < v_last - 2 * v_grain THEN   -- less is the haste of two backends, not a clock that was set back
    UPDATE beltline.clock SET skew = last - v_raw WHERE v_raw + skew < last - 2 * v_grain;
    RETURN v_last;
  ELSIF v_raw + v_skew > v_last + v_grain THEN
    UPDATE beltline.clock SET last = v_raw + skew
      WHERE ctid = ANY(ARRAY(SELECT ctid FROM beltline.clock FOR UPDATE SKIP LOCKED)) AND last < v_raw + skew;
  END IF;
  RETURN greatest(v_raw + v_skew, v_last);
END $$;

-- The same without noting it: for reading, and for sends in a transaction of the user, which must hold no lock that others want.
CREATE OR REPLACE FUNCTION beltline._time(p_now bigint) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
BEGIN
  RETURN (SELECT greatest(coalesce(p_now, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) + skew, last) FROM beltline.clock);
END $$;

CREATE OR REPLACE FUNCTION beltline._seal() RETURNS text LANGUAGE plpgsql STABLE AS $$
BEGIN
  RETURN (SELECT coalesce((SELECT value FROM beltline.meta WHERE key = 'seal'), ''));
END $$;

-- Refuse what a move forbids, unless this is the mover's own transaction.
CREATE OR REPLACE FUNCTION beltline._unsealed(p_seal int, p_allowed int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF p_seal > p_allowed AND p_seal::text IS DISTINCT FROM current_setting('beltline.mover', true) THEN
    RAISE EXCEPTION 'the queues are moving' USING ERRCODE = 'BL002', DETAIL = beltline._seal();
  END IF;
END $$;

CREATE OR REPLACE FUNCTION beltline._count(p_queue int, p_ready int, p_delayed int, p_leased int, p_dead int, p_done int, p_parked int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO beltline.delta(queue, ready, delayed, leased, dead, done, parked) VALUES (p_queue, p_ready, p_delayed, p_leased, p_dead, p_done, p_parked);
END $$;

-- One message left a state and entered another (0 delayed, 1 ready, 2 leased, 3 done, 4 dead; NULL: none).
CREATE OR REPLACE FUNCTION beltline._moved(p_queue int, p_from int, p_to int, p_parked int DEFAULT 0) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO beltline.delta(queue, delayed, ready, leased, done, dead, parked) VALUES (p_queue,
    (p_to = 0)::int - (coalesce(p_from, -1) = 0)::int, (p_to = 1)::int - (coalesce(p_from, -1) = 1)::int, (p_to = 2)::int - (coalesce(p_from, -1) = 2)::int,
    (p_to = 3)::int - (coalesce(p_from, -1) = 3)::int, (p_to = 4)::int - (coalesce(p_from, -1) = 4)::int, p_parked);
END $$;

CREATE OR REPLACE FUNCTION beltline._is_parked(p_why text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT coalesce(p_why = 'no worker knows this task', false) $$;

-- Something may be received there: the engine hints at it after the verb. Kept in a setting of this transaction, because it comes up deep inside.
CREATE OR REPLACE FUNCTION beltline._woken(p_queue int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('beltline.woken', coalesce(current_setting('beltline.woken', true), '') || p_queue || ' ', true);
END $$;

CREATE OR REPLACE FUNCTION beltline._rank(p_queue int, p_ready bigint, p_prio smallint) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
BEGIN
  RETURN (SELECT p_ready - p_prio * ageing_ms FROM beltline.queue WHERE n = p_queue);
END $$;

CREATE OR REPLACE FUNCTION beltline._worker(p_worker text) RETURNS int LANGUAGE plpgsql AS $$
DECLARE v_n int;
BEGIN
  SELECT n INTO v_n FROM beltline.name WHERE text = p_worker;
  IF v_n IS NULL THEN
    INSERT INTO beltline.name(text) VALUES (p_worker) ON CONFLICT DO NOTHING;
    SELECT n INTO v_n FROM beltline.name WHERE text = p_worker;
  END IF;
  RETURN v_n;
END $$;

-- ------------------------------------------------------------------------------------------------------------- where a message is
CREATE OR REPLACE FUNCTION beltline._find(p_id uuid) RETURNS beltline.fact LANGUAGE plpgsql STABLE AS $$
DECLARE f beltline.fact;
BEGIN
  SELECT (places.f).* INTO f FROM (
    SELECT ROW(1, false, queue, seq, id, rank, since, epoch, failed, lost, flags, expires, why, error, NULL, NULL, NULL)::beltline.fact AS f
      FROM beltline.ready WHERE id = p_id
    UNION ALL SELECT ROW(1, false, queue, seq, id, rank, since, epoch, failed, lost, flags, expires, why, error, NULL, NULL, NULL)::beltline.fact
      FROM beltline.flow_ready WHERE id = p_id
    UNION ALL SELECT ROW(2, false, queue, seq, id, rank, since, epoch, failed, lost, flags, NULL, NULL, error, due, started, worker)::beltline.fact
      FROM beltline.lease WHERE id = p_id
    UNION ALL SELECT ROW(0, false, queue, seq, id, rank, since, epoch, failed, lost, flags, expires, why, error, NULL, NULL, NULL)::beltline.fact
      FROM beltline.delayed WHERE id = p_id
    UNION ALL SELECT ROW(was, true, queue, seq, id, rank, since, epoch, failed, lost, flags, expires, why, error, NULL, NULL, NULL)::beltline.fact
      FROM beltline.blocked WHERE id = p_id
    UNION ALL SELECT ROW(4, false, queue, seq, id, NULL, ended, epoch, failed, lost, flags, NULL, why, error, NULL, NULL, NULL)::beltline.fact
      FROM beltline.dead WHERE id = p_id
    UNION ALL SELECT ROW(3, false, queue, seq, id, NULL, ended, epoch, failed, lost, flags, NULL, why, error, NULL, started, worker)::beltline.fact
      FROM beltline.done WHERE id = p_id
  ) places LIMIT 1;
  RETURN f;
END $$;

-- Take it out of where it is, if that is one of `p_states`; it may move while we reach for it. NULL: it is not, or not any more.
CREATE OR REPLACE FUNCTION beltline._remove(p_id uuid, p_states smallint[]) RETURNS beltline.fact LANGUAGE plpgsql AS $$
DECLARE f beltline.fact; v_gone bigint;
BEGIN
  FOR i IN 1..100 LOOP
    f := beltline._find(p_id);
    IF f.id IS NULL OR NOT f.state = ANY(p_states) THEN
      RETURN NULL;
    END IF;
    IF f.blocked THEN
      DELETE FROM beltline.blocked WHERE id = p_id AND was = f.state;
    ELSIF f.state = 0 THEN
      DELETE FROM beltline.delayed WHERE id = p_id;
    ELSIF f.state = 1 AND f.flags & 8 <> 0 THEN
      WITH gone AS (DELETE FROM beltline.flow_ready WHERE id = p_id RETURNING queue, lane)
        INSERT INTO beltline.flow_event(queue, verb, lane, heads) SELECT queue, beltline._verb(), lane, -1 FROM gone;
    ELSIF f.state = 1 THEN
      DELETE FROM beltline.ready WHERE id = p_id;
    ELSIF f.state = 2 THEN
      DELETE FROM beltline.lease WHERE id = p_id AND epoch = f.epoch;
    ELSIF f.state = 3 THEN
      DELETE FROM beltline.done WHERE id = p_id;
    ELSE
      DELETE FROM beltline.dead WHERE id = p_id;
    END IF;
    GET DIAGNOSTICS v_gone = ROW_COUNT;
    IF v_gone > 0 THEN
      RETURN f;
    END IF;
  END LOOP;
  RAISE EXCEPTION 'message % keeps moving', p_id USING ERRCODE = 'serialization_failure';
END $$;

CREATE OR REPLACE FUNCTION beltline._put_ready(p_now bigint, f beltline.fact, p_queue int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF f.flags & 8 <> 0 THEN
    PERFORM beltline._put_in_lane(f);
    RETURN;
  END IF;
  INSERT INTO beltline.ready(rank, seq, since, id, queue, epoch, failed, lost, flags, expires, why, error)
  VALUES (f.rank, f.seq, f.since, f.id, p_queue, f.epoch, f.failed, f.lost, f.flags, f.expires, f.why, f.error);
END $$;

CREATE OR REPLACE FUNCTION beltline._put_delayed(f beltline.fact, p_queue int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO beltline.delayed(rank, seq, since, id, queue, epoch, failed, lost, flags, expires, why, error)
  VALUES (f.rank, f.seq, f.since, f.id, p_queue, f.epoch, f.failed, f.lost, f.flags, f.expires, f.why, f.error);
END $$;

CREATE OR REPLACE FUNCTION beltline._put_blocked(f beltline.fact, p_queue int, p_group bytea) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO beltline.blocked(rank, seq, since, id, queue, epoch, failed, lost, flags, expires, why, error, was, group_key)
  VALUES (f.rank, f.seq, f.since, f.id, p_queue, f.epoch, f.failed, f.lost, f.flags, f.expires, f.why, f.error, f.state, p_group);
END $$;

-- An entry in the history: a delivery that ended, or a remark about a message that is not leased.
CREATE OR REPLACE FUNCTION beltline._note(p_now bigint, f beltline.fact, p_outcome text, p_ran float8, p_text text, p_failure bytea) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO beltline.attempt(id, started, ended, epoch, worker, ran, outcome, note, failure)
    VALUES (f.id, CASE WHEN f.state = 2 THEN f.started ELSE p_now END, p_now, f.epoch, CASE WHEN f.state = 2 THEN f.worker END, p_ran, p_outcome, p_text, p_failure);
  IF f.epoch > 0 AND f.epoch % 100 = 0 THEN   -- a message that is parked every five seconds must not grow for ever
    DELETE FROM beltline.attempt WHERE id = f.id AND n <= (SELECT n FROM beltline.attempt WHERE id = f.id ORDER BY n DESC LIMIT 1 OFFSET 100);
  END IF;
END $$;

-- ------------------------------------------------------------------------------------------------------------- FIFO groups
-- Lock these lanes, made if they are new.
CREATE OR REPLACE FUNCTION beltline._lanes(p_queue int, p_groups bytea[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_found bigint; v_wanted bigint := (SELECT count(DISTINCT g) FROM unnest(p_groups) g);
BEGIN
  LOOP
    INSERT INTO beltline.lane(queue, group_key) SELECT p_queue, g FROM (SELECT DISTINCT g FROM unnest(p_groups) g) d ORDER BY g ON CONFLICT DO NOTHING;
    SELECT count(*) INTO v_found FROM (SELECT FROM beltline.lane WHERE queue = p_queue AND group_key = ANY(p_groups) ORDER BY group_key FOR NO KEY UPDATE) l;
    EXIT WHEN v_found = v_wanted;   -- upkeep may have dropped an empty one in between
  END LOOP;
END $$;

-- Let exactly the right message of a locked lane stand in the queue: the leased one until it ends, else the first sent. A dead one before it holds the group,
-- unless the queue skips the dead.
CREATE OR REPLACE FUNCTION beltline._reorder(p_queue int, p_group bytea, p_now bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  v_head uuid; f beltline.fact; b beltline.fact; v_next uuid; v_first bigint; v_dead bigint;
BEGIN
  SELECT head INTO v_head FROM beltline.lane WHERE queue = p_queue AND group_key = p_group;
  IF v_head IS NOT NULL THEN
    f := beltline._find(v_head);
    IF f.queue IS DISTINCT FROM p_queue OR f.state > 2 OR f.blocked THEN
      f := NULL;
    ELSIF f.state = 2 THEN
      RETURN;
    END IF;
  END IF;
  SELECT id, seq INTO v_next, v_first FROM beltline.blocked WHERE queue = p_queue AND group_key = p_group ORDER BY seq LIMIT 1;
  v_first := least(v_first, f.seq);
  IF v_first IS NOT NULL AND NOT (SELECT skip_dead FROM beltline.queue WHERE n = p_queue) THEN
    SELECT seq INTO v_dead FROM beltline.dead WHERE queue = p_queue AND group_key = p_group ORDER BY seq LIMIT 1;
    IF v_dead < v_first THEN
      v_first := NULL;
    END IF;
  END IF;
  IF f.id IS NOT NULL AND f.seq IS DISTINCT FROM v_first THEN
    f := beltline._remove(f.id, '{0,1}');
    IF f.id IS NULL THEN
      RETURN;   -- it has just been received: it stands for its group until it ends
    END IF;
    PERFORM beltline._put_blocked(f, p_queue, p_group);
    f := NULL;
  END IF;
  IF v_first IS NULL THEN
    UPDATE beltline.lane SET head = NULL WHERE queue = p_queue AND group_key = p_group AND head IS NOT NULL;
  ELSIF f.id IS NULL THEN
    b := beltline._remove(v_next, '{0,1}');
    IF b.state = 0 AND b.since <= p_now THEN
      PERFORM beltline._moved(p_queue, 0, 1);
      PERFORM beltline._flow_moved(ARRAY[b.id], 0, 1) WHERE b.flags & 8 <> 0;
      b.state := 1;
    END IF;
    IF b.state = 1 THEN
      PERFORM beltline._put_ready(p_now, b, p_queue);
      PERFORM beltline._woken(p_queue);
    ELSE
      PERFORM beltline._put_delayed(b, p_queue);
    END IF;
    UPDATE beltline.lane SET head = b.id WHERE queue = p_queue AND group_key = p_group;
  END IF;
END $$;

CREATE OR REPLACE FUNCTION beltline._lane_moves_on(p_now bigint, f beltline.fact) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_group bytea;
BEGIN
  IF f.flags & 1 <> 0 THEN
    SELECT group_key INTO v_group FROM beltline.body WHERE id = f.id;
    PERFORM beltline._lanes(f.queue, ARRAY[v_group]);
    PERFORM beltline._reorder(f.queue, v_group, p_now);
  END IF;
END $$;

-- ------------------------------------------------------------------------------------------------------------- runs
CREATE OR REPLACE FUNCTION beltline._runs(p_runs uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM count(*) FROM (SELECT FROM beltline.run WHERE id = ANY(p_runs) ORDER BY id FOR NO KEY UPDATE) r;
END $$;

-- p_last: how its last message ended; 0: a gather went on from there; NULL: leave it.
CREATE OR REPLACE FUNCTION beltline._run_add(p_run uuid, p_open int, p_dead int, p_last smallint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  UPDATE beltline.run SET open = open + p_open, dead = dead + p_dead, last = coalesce(p_last, last), touched = true WHERE id = p_run;
END $$;

-- Where runs stand now that the verb is complete. A run that was given up (3, 4) stays so.
CREATE OR REPLACE FUNCTION beltline._judge(p_now bigint, p_runs uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  WITH judged AS (
    SELECT id, counted AS before, CASE WHEN state >= 3 THEN state WHEN open > 0 THEN 0 WHEN dead > 0 THEN 2 WHEN last IN (2, 3) THEN 4 ELSE 1 END AS state
      FROM beltline.run WHERE id = ANY(p_runs) AND touched),
  written AS (
    UPDATE beltline.run r SET touched = false, state = j.state, counted = j.state,
        ended = CASE WHEN j.state = j.before THEN r.ended WHEN j.state IN (0, 2) THEN 0 ELSE p_now END
      FROM judged j WHERE r.id = j.id RETURNING r.chain, j.before, j.state)
  INSERT INTO beltline.run_delta(chain, state, count)
    SELECT chain, state, sum(change) FROM (
      SELECT chain, state, 1 AS change FROM written WHERE state <> before
      UNION ALL SELECT chain, before, -1 FROM written WHERE state <> before AND before >= 0) changes
    GROUP BY chain, state HAVING sum(change) <> 0;
END $$;

CREATE OR REPLACE FUNCTION beltline._given_up(p_run uuid) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
  RETURN (SELECT state >= 3 FROM beltline.run WHERE id = p_run);
END $$;

-- p_state 3 failed, 4 cancelled: nothing is handed on any more, what is live is dropped.
CREATE OR REPLACE FUNCTION beltline._give_up(p_now bigint, p_run uuid, p_state smallint, p_why text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_id uuid;
BEGIN
  UPDATE beltline.run SET state = p_state, touched = true, why = CASE WHEN p_state = 4 THEN p_why ELSE why END WHERE id = p_run;
  FOR v_id IN SELECT b.id FROM beltline.body b WHERE b.run = p_run ORDER BY b.seq LOOP
    IF (beltline._find(v_id)).state <= 2 THEN
      PERFORM beltline._drop(p_now, v_id, p_why);
    END IF;
  END LOOP;
END $$;

-- ------------------------------------------------------------------------------------------------------------- ends
-- Done without a settlement of its own. p_outcome 2 cancelled, 3 expired. The caller has taken it out of where it was, and judges the run at the end.
CREATE OR REPLACE FUNCTION beltline._end(p_now bigint, f beltline.fact, p_outcome smallint, p_why text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_run uuid; v_gather uuid; v_part int; v_hold boolean;
BEGIN
  INSERT INTO beltline.done(id, ended, seq, queue, epoch, failed, lost, outcome, flags, why, error)
    VALUES (f.id, p_now, f.seq, f.queue, f.epoch, f.failed, f.lost, p_outcome, f.flags, p_why, f.error);
  PERFORM beltline._moved(f.queue, f.state, 3, CASE WHEN f.state < 2 AND beltline._is_parked(f.why) THEN -1 ELSE 0 END);
  PERFORM beltline._flow_moved(ARRAY[f.id], f.state, 3) WHERE f.flags & 8 <> 0;
  DELETE FROM beltline.asked WHERE id = f.id;
  PERFORM beltline._lane_moves_on(p_now, f);
  IF f.flags & 2 <> 0 THEN
    SELECT run, gather, part INTO v_run, v_gather, v_part FROM beltline.body WHERE id = f.id;
    PERFORM beltline._runs(ARRAY[v_run]);
    IF f.state = 4 THEN
      IF beltline._counts_as_dead(v_gather) THEN
        PERFORM beltline._run_add(v_run, 0, -1, p_outcome);
      END IF;
    ELSE
      PERFORM beltline._run_add(v_run, -1, 0, p_outcome);
    END IF;
    IF v_gather IS NOT NULL AND NOT beltline._given_up(v_run) THEN
      PERFORM beltline._absent(p_now, v_gather, v_part, true);
    END IF;
  END IF;
END $$;

-- A dead part whose gather goes on without it does not hold its run.
CREATE OR REPLACE FUNCTION beltline._counts_as_dead(p_gather uuid) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
  RETURN (SELECT NOT EXISTS (SELECT FROM beltline.gather WHERE id = p_gather AND on_dead = 1));
END $$;

CREATE OR REPLACE FUNCTION beltline._die(p_now bigint, f beltline.fact, p_reason text, p_error text, p_failure bytea) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_run uuid; v_gather uuid; v_part int; v_group bytea; v_on_dead smallint;
BEGIN
  SELECT group_key, run, gather, part INTO v_group, v_run, v_gather, v_part FROM beltline.body WHERE id = f.id;
  INSERT INTO beltline.dead(id, seq, ended, queue, epoch, failed, lost, flags, why, error, group_key)
    VALUES (f.id, f.seq, p_now, f.queue, f.epoch, f.failed, f.lost, f.flags, p_reason, p_error, v_group);
  PERFORM beltline._moved(f.queue, f.state, 4, CASE WHEN f.state < 2 AND beltline._is_parked(f.why) THEN -1 ELSE 0 END);
  PERFORM beltline._flow_moved(ARRAY[f.id], f.state, 4) WHERE f.flags & 8 <> 0;
  PERFORM beltline._lane_moves_on(p_now, f);
  IF v_run IS NULL THEN
    RETURN;
  END IF;
  PERFORM beltline._runs(ARRAY[v_run]);
  SELECT on_dead INTO v_on_dead FROM beltline.gather WHERE id = v_gather;
  PERFORM beltline._run_add(v_run, -1, CASE WHEN v_on_dead = 1 THEN 0 ELSE 1 END, NULL);
  UPDATE beltline.run SET why = p_reason, failure = p_failure WHERE id = v_run;
  IF v_on_dead IS NULL OR beltline._given_up(v_run) THEN
    RETURN;
  ELSIF v_on_dead = 2 THEN
    PERFORM beltline._give_up(p_now, v_run, 3::smallint, 'A part died: ' || p_reason);
  ELSIF v_on_dead = 1 THEN
    PERFORM beltline._answer(p_now, v_gather, v_part, NULL);
  ELSIF NOT EXISTS (SELECT FROM beltline.gather_part WHERE gather = v_gather AND part = v_part AND NOT dead) THEN
    WITH buried AS (INSERT INTO beltline.gather_part(gather, part, dead) VALUES (v_gather, v_part, true) ON CONFLICT DO NOTHING RETURNING 1)
      UPDATE beltline.gather SET dead = dead + 1 WHERE id = v_gather AND EXISTS (SELECT FROM buried);
  END IF;
END $$;

-- Cancel: at once, or, if it is leased, by asking its worker. Returns its state afterwards, NULL if nobody knows it.
CREATE OR REPLACE FUNCTION beltline._drop(p_now bigint, p_id uuid, p_why text) RETURNS smallint LANGUAGE plpgsql AS $$
DECLARE f beltline.fact;
BEGIN
  FOR i IN 1..100 LOOP
    f := beltline._find(p_id);
    IF f.id IS NULL OR f.state = 3 THEN
      RETURN f.state;
    ELSIF f.state = 2 THEN
      PERFORM FROM beltline.lease WHERE id = p_id AND epoch = f.epoch FOR UPDATE;
      IF FOUND THEN
        INSERT INTO beltline.asked(id, reason) VALUES (p_id, p_why) ON CONFLICT DO NOTHING;
        RETURN 2;
      END IF;
    ELSE
      f := beltline._remove(p_id, '{0,1,4}');
      IF f.id IS NOT NULL THEN
        PERFORM beltline._end(p_now, f, 2::smallint, p_why);
        RETURN 3;
      END IF;
    END IF;
  END LOOP;
  RAISE EXCEPTION 'message % keeps moving', p_id USING ERRCODE = 'serialization_failure';
END $$;

-- ------------------------------------------------------------------------------------------------------------- gathers
-- The answer of a part; NULL: it will never come. Its run is locked.
CREATE OR REPLACE FUNCTION beltline._answer(p_now bigint, p_gather uuid, p_part int, p_value bytea) RETURNS void LANGUAGE plpgsql AS $$
DECLARE g beltline.gather; v_revived int;
BEGIN
  SELECT * INTO g FROM beltline.gather WHERE id = p_gather FOR UPDATE;
  IF g.id IS NULL OR g.fired OR p_part < 0 OR p_part >= g.expected THEN
    RETURN;
  END IF;
  PERFORM beltline._revive(p_gather, p_part);
  INSERT INTO beltline.gather_part(gather, part, dead, value) VALUES (p_gather, p_part, false, p_value) ON CONFLICT DO NOTHING;
  IF FOUND THEN
    UPDATE beltline.gather SET missing = missing - 1 WHERE id = p_gather;
    PERFORM beltline._fire_if_complete(p_now, p_gather);
  END IF;
END $$;

-- A dead part is alive again.
CREATE OR REPLACE FUNCTION beltline._revive(p_gather uuid, p_part int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  WITH revived AS (DELETE FROM beltline.gather_part WHERE gather = p_gather AND part = p_part AND dead RETURNING 1)
    UPDATE beltline.gather SET dead = dead - 1 WHERE id = p_gather AND EXISTS (SELECT FROM revived);
END $$;

CREATE OR REPLACE FUNCTION beltline._absent(p_now bigint, p_gather uuid, p_part int, p_failing boolean) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_run uuid;
BEGIN
  SELECT run INTO v_run FROM beltline.gather g WHERE id = p_gather AND p_failing AND NOT fired AND on_dead = 2
    AND NOT EXISTS (SELECT FROM beltline.gather_part p WHERE p.gather = p_gather AND p.part = p_part AND NOT p.dead);
  IF v_run IS NULL THEN
    PERFORM beltline._answer(p_now, p_gather, p_part, NULL);
  ELSE
    PERFORM beltline._give_up(p_now, v_run, 3::smallint, 'A part was cancelled or expired.');
  END IF;
END $$;

-- The packed list of packed values. Source: MessagePack specification, array family.
CREATE OR REPLACE FUNCTION beltline._list(p_count int, p_values bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN p_count < 16 THEN set_byte('\x00'::bytea, 0, 144 + p_count)
    WHEN p_count < 65536 THEN '\xdc'::bytea || int2send((CASE WHEN p_count > 32767 THEN p_count - 65536 ELSE p_count END)::int2)
    ELSE '\xdd'::bytea || int4send(p_count) END || coalesce(p_values, ''::bytea)
$$;

CREATE OR REPLACE FUNCTION beltline._fire_if_complete(p_now bigint, p_gather uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE g beltline.gather; v_list bytea; v_item beltline.item;
BEGIN
  SELECT * INTO g FROM beltline.gather WHERE id = p_gather;
  IF g.fired OR g.missing > 0 OR beltline._given_up(g.run) THEN
    RETURN;
  END IF;
  SELECT beltline._list(count(*)::int, string_agg(value, ''::bytea ORDER BY part)) INTO v_list
    FROM beltline.gather_part WHERE gather = p_gather AND NOT dead AND value IS NOT NULL;
  DELETE FROM beltline.gather_part WHERE gather = p_gather;   -- they live on in what is sent
  UPDATE beltline.gather SET fired = true WHERE id = p_gather;
  UPDATE beltline.run SET last = 0, touched = true WHERE id = g.run;
  IF (g.then_item).id IS NOT NULL THEN
    v_item := g.then_item;
    v_item.body := g.prefix || v_list || g.suffix;
    PERFORM beltline._hand_on(p_now, ARRAY[v_item]);
  ELSIF g.outer_gather IS NOT NULL THEN
    PERFORM beltline._answer(p_now, g.outer_gather, g.outer_part, v_list);
  ELSE
    UPDATE beltline.run SET result = v_list, result_until = p_now + g.ttl WHERE id = g.run;
  END IF;
END $$;
