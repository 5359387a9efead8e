-- Schedules: one row each, and where it stands. What a put makes of a row is said in engines/schedules.py; it is written if nobody has changed it meanwhile.
-- A step is one statement of three calls: `hold_schedule` compares and locks, `send` sends, `move_schedule` writes where it stands now.

CREATE TABLE beltline.schedule(
  name text PRIMARY KEY, spec bytea NOT NULL, revision int NOT NULL, origin text NOT NULL, owner text NOT NULL, paused boolean NOT NULL, gone boolean NOT NULL,
  named bigint NOT NULL, stood bigint NOT NULL,   -- all up to here is decided
  next bigint,                                    -- nothing is due before; 0: not worked out, NULL: never again
  last_due bigint, last_sent bigint, last_id uuid, sent bigint NOT NULL, skipped bigint NOT NULL, error text NOT NULL);
CREATE INDEX schedule_next ON beltline.schedule(next) WHERE NOT paused AND NOT gone AND next IS NOT NULL;
ALTER TABLE beltline.schedule SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

-- p_seen: the revisions the caller has read (NULL: there was none). False: one of them is another one now, read again. p_stood, p_next NULL: as they are.
CREATE FUNCTION beltline.put_schedules(
  p_now bigint, p_seen int[], p_name text[], p_spec bytea[], p_revision int[], p_origin text[], p_owner text[], p_gone boolean[], p_named bigint[], p_stood bigint[],
  p_next bigint[]) RETURNS boolean LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
BEGIN
  PERFORM beltline._now(p_now);
  PERFORM pg_advisory_xact_lock(1111837781, tableoid::int) FROM beltline.clock;   -- "BELT" + 1: two that make the same one
  PERFORM FROM beltline.schedule WHERE name = ANY(p_name) ORDER BY name FOR UPDATE;
  IF EXISTS (SELECT FROM unnest(p_name, p_seen) AS i(name, seen) LEFT JOIN beltline.schedule s ON s.name = i.name WHERE s.revision IS DISTINCT FROM i.seen) THEN
    RETURN false;
  END IF;
  UPDATE beltline.schedule s SET spec = i.spec, revision = i.revision, origin = i.origin, owner = i.owner, gone = i.gone, named = i.named,
      stood = coalesce(i.stood, s.stood), next = coalesce(i.next, s.next), error = CASE WHEN i.next IS NULL THEN s.error ELSE '' END
    FROM unnest(p_name, p_spec, p_revision, p_origin, p_owner, p_gone, p_named, p_stood, p_next) AS i(name, spec, revision, origin, owner, gone, named, stood, next)
    WHERE s.name = i.name;
  INSERT INTO beltline.schedule(name, spec, revision, origin, owner, paused, gone, named, stood, next, sent, skipped, error)
    SELECT i.name, i.spec, i.revision, i.origin, i.owner, false, i.gone, i.named, i.stood, i.next, 0, 0, ''
      FROM unnest(p_name, p_seen, p_spec, p_revision, p_origin, p_owner, p_gone, p_named, p_stood, p_next)
        AS i(name, seen, spec, revision, origin, owner, gone, named, stood, next) WHERE i.seen IS NULL;
  RETURN true;
END $$;

-- False: no such schedule.
CREATE FUNCTION beltline.pause_schedule(p_now bigint, p_name text, p_paused boolean) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE v_now bigint := beltline._now(p_now);
BEGIN
  UPDATE beltline.schedule SET paused = p_paused, revision = revision + 1, stood = CASE WHEN p_paused THEN stood ELSE v_now END,
      next = CASE WHEN p_paused THEN next ELSE 0 END, error = CASE WHEN p_paused THEN error ELSE '' END
    WHERE name = p_name AND paused <> p_paused;
  RETURN EXISTS (SELECT FROM beltline.schedule WHERE name = p_name);
END $$;

CREATE FUNCTION beltline.remove_schedule(p_now bigint, p_name text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  PERFORM beltline._now(p_now);
  DELETE FROM beltline.schedule WHERE name = p_name;
  RETURN FOUND;
END $$;

-- 0: it is as the caller saw it, and locked; 1: stale, or somebody is at it; 2: p_stands has not come yet.
CREATE FUNCTION beltline.hold_schedule(p_now bigint, p_name text, p_revision int, p_stood bigint, p_stands bigint) RETURNS int LANGUAGE plpgsql AS $$
DECLARE v_now bigint := beltline._now(p_now);
BEGIN
  PERFORM FROM beltline.schedule WHERE name = p_name AND revision = p_revision AND stood = p_stood AND NOT paused AND NOT gone FOR UPDATE SKIP LOCKED;
  RETURN CASE WHEN NOT FOUND THEN 1 WHEN p_stands > v_now OR p_stands < p_stood THEN 2 ELSE 0 END;
END $$;

-- p_sent messages are, the newest of them p_last.
CREATE FUNCTION beltline.move_schedule(p_now bigint, p_name text, p_stands bigint, p_next bigint, p_sent int, p_last uuid, p_skipped int, p_error text)
  RETURNS int LANGUAGE plpgsql AS $$
DECLARE v_now bigint := beltline._now(p_now);
BEGIN
  UPDATE beltline.schedule SET stood = p_stands, next = p_next, skipped = skipped + p_skipped, error = p_error, sent = sent + p_sent,
      last_due = CASE WHEN p_sent > 0 THEN p_stands ELSE last_due END, last_sent = CASE WHEN p_sent > 0 THEN v_now ELSE last_sent END, last_id = coalesce(p_last, last_id)
    WHERE name = p_name;
  RETURN 0;
END $$;

-- A page of a move (moving.sql).
CREATE FUNCTION beltline.put_moved_schedules(
  p_before text, p_after text, p_level int, p_name text[], p_spec bytea[], p_origin text[], p_owner text[], p_paused boolean[], p_gone boolean[], p_named bigint[],
  p_stood bigint[], p_last_due bigint[], p_last_sent bigint[], p_last_id uuid[], p_sent bigint[], p_skipped bigint[], p_error text[])
  RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  IF NOT beltline.set_seal(p_before, p_after, p_level) THEN
    RETURN false;
  END IF;
  INSERT INTO beltline.schedule(name, spec, revision, origin, owner, paused, gone, named, stood, next, last_due, last_sent, last_id, sent, skipped, error)
    SELECT name, spec, 1, origin, owner, paused, gone, named, stood, 0, last_due, last_sent, last_id, sent, skipped, error
      FROM unnest(p_name, p_spec, p_origin, p_owner, p_paused, p_gone, p_named, p_stood, p_last_due, p_last_sent, p_last_id, p_sent, p_skipped, p_error)
        AS i(name, spec, origin, owner, paused, gone, named, stood, last_due, last_sent, last_id, sent, skipped, error)
    ON CONFLICT (name) DO NOTHING;
  RETURN true;
END $$;
