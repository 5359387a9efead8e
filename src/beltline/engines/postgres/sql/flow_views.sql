-- What people see of flow control, with what was told since the last receive taken into account. Nothing here locks or changes anything.

-- The lanes of a queue that are closed now, how many ready messages each has, and how many of these are not behind their group's head.
CREATE FUNCTION beltline._closed_lanes(p_now bigint, p_queue int) RETURNS TABLE(lane int, name text, key text, ready bigint, heads bigint) LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE v_told boolean := EXISTS (SELECT FROM beltline.flow_event WHERE queue = p_queue);
BEGIN
  RETURN QUERY
    WITH steps AS (SELECT e.lane, e.verb, min(e.n) AS n, sum(e.ready) AS ready, sum(e.heads) AS heads FROM beltline.flow_event e WHERE v_told AND e.queue = p_queue AND e.lane IS NOT NULL GROUP BY 1, 2),
    sums AS (SELECT s.lane, sum(s.ready) AS ready, sum(s.heads) AS heads, min(s.low) AS low FROM (SELECT s.lane, s.ready, s.heads, sum(s.ready) OVER (PARTITION BY s.lane ORDER BY s.n) AS low FROM steps s) s GROUP BY 1),
    freed AS (SELECT e.name, e.key, sum(e.places) AS places FROM beltline.flow_event e WHERE v_told AND e.queue = p_queue AND e.name IS NOT NULL GROUP BY 1, 2),
    due AS (SELECT m.lane, count(*) AS ready, count(*) FILTER (WHERE d.head) AS heads FROM (
        SELECT id, true AS head FROM beltline.delayed WHERE queue = p_queue AND since <= p_now AND flags & 8 <> 0
        UNION ALL SELECT id, false FROM beltline.blocked WHERE queue = p_queue AND was = 0 AND since <= p_now AND flags & 8 <> 0) d
      JOIN beltline.flow_message m ON m.id = d.id GROUP BY 1),
    standing AS (SELECT l.n, l.closed_limit, l.closed_key, l.ready + coalesce(s.ready, 0) AS ready, l.heads + coalesce(s.heads, 0) AS heads,
        CASE WHEN EXISTS (SELECT FROM freed) THEN row_number() OVER (PARTITION BY l.closed_limit, l.closed_key ORDER BY l.closed_at, l.name, l.prio) END AS place
      FROM beltline.flow_lane l LEFT JOIN sums s ON s.lane = l.n
      WHERE l.queue = p_queue AND l.closed_limit IS NOT NULL AND (s.lane IS NULL OR l.ready + s.low > 0))
    SELECT l.n, l.closed_limit, l.closed_key, (l.ready + coalesce(d.ready, 0))::bigint, (l.heads + coalesce(d.heads, 0))::bigint FROM standing l LEFT JOIN due d ON d.lane = l.n
      WHERE NOT EXISTS (SELECT FROM freed f WHERE f.name = l.closed_limit AND f.key = l.closed_key AND l.place <= f.places);
END $$;

-- For `counts` of a gated queue. Of messages that are not behind their group's head, closed: those in closed lanes, also delayed ones that are due; heads: the ready ones
-- of all lanes (NULL unless p_heads). room: starts that the limits and the kill switch of the whole queue allow now; NULL: any number.
CREATE FUNCTION beltline._flow_counts(p_now bigint, p_queue int, p_heads boolean, OUT first bigint, OUT closed bigint, OUT heads bigint, OUT room bigint,
  OUT snoozed bigint, OUT tripped bigint, OUT trying boolean) LANGUAGE plpgsql STABLE AS $$
DECLARE g beltline.flow;
BEGIN
  SELECT * INTO g FROM beltline.flow WHERE queue = p_queue;
  g := beltline._judged(g);
  SELECT min(since) INTO first FROM beltline.flow_ready WHERE queue = p_queue;
  SELECT sum(c.heads)::bigint INTO closed FROM beltline._closed_lanes(p_now, p_queue) c WHERE g.shaped;
  IF p_heads THEN
    heads := (SELECT coalesce(sum(l.heads), 0) FROM beltline.flow_lane l WHERE l.queue = p_queue)
      + (SELECT coalesce(sum(e.heads), 0) FROM beltline.flow_event e WHERE e.queue = p_queue AND e.lane IS NOT NULL);
  END IF;
  IF g.limited THEN
    SELECT l.room INTO room FROM beltline._limited(p_now, p_queue) l;
  END IF;
  IF g.trying AND g.share IS NOT NULL THEN
    room := least(room, greatest(0, g.tries - g.succeeded - (SELECT count(*) FROM beltline.lease WHERE queue = p_queue AND due > p_now)));
  END IF;
  snoozed := g.snoozed; tripped := g.tripped; trying := g.trying;
END $$;

-- Running: leases that hold a place of any of its buckets; waiting: ready messages behind the closed ones.
CREATE FUNCTION beltline.limits(p_now bigint) RETURNS TABLE(name text, data bytea, given boolean, running bigint, waiting bigint) LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE v_now bigint := beltline._time(p_now);
BEGIN
  RETURN QUERY
    WITH closed AS MATERIALIZED (SELECT c.name, sum(c.ready)::bigint AS ready FROM beltline.flow g CROSS JOIN LATERAL beltline._closed_lanes(v_now, g.queue) c WHERE g.shaped GROUP BY 1)
    SELECT l.name, coalesce(l.given, l.declared), l.given IS NOT NULL,
        (SELECT count(*) FROM (
          SELECT h.id FROM beltline.flow_hold h JOIN beltline.lease e ON e.id = h.id WHERE h.name = l.name AND e.due > v_now
          UNION SELECT e.id FROM beltline.flow_limited q JOIN beltline.lease e ON e.queue = q.queue WHERE q.name = l.name AND e.due > v_now) r),
        coalesce((SELECT c.ready FROM closed c WHERE c.name = l.name), 0)
      FROM beltline.flow_limit l ORDER BY l.name;
END $$;

-- Those keys of a limit where something runs or waits, or that time will open. opens: NULL: it is open; 9e18: when a place is given back.
CREATE FUNCTION beltline.buckets(p_now bigint, p_name text, p_limit int) RETURNS TABLE(key text, running bigint, waiting bigint, opens bigint) LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE v_now bigint := beltline._time(p_now); v_limit beltline.flow_limit;
BEGIN
  SELECT * INTO v_limit FROM beltline.flow_limit l WHERE l.name = p_name;
  RETURN QUERY
    WITH closed AS MATERIALIZED (
      SELECT c.key, sum(c.ready)::bigint AS ready FROM beltline.flow g CROSS JOIN LATERAL beltline._closed_lanes(v_now, g.queue) c WHERE g.shaped AND c.name = p_name GROUP BY 1),
    keys AS (SELECT ''::text AS key UNION SELECT c.key FROM closed c UNION SELECT h.key FROM beltline.flow_hold h WHERE h.name = p_name
      UNION SELECT b.key FROM beltline.flow_bucket b WHERE b.name = p_name AND b.tat > (v_now - 1000) * 1000 - v_limit.burst_us)
    SELECT x.* FROM (
      SELECT k.key, r.running, coalesce((SELECT c.ready FROM closed c WHERE c.key = k.key), 0) AS waiting,
          CASE WHEN r.running >= v_limit.most THEN coalesce(r.soonest, 9000000000000000000)
            WHEN t.opens > v_now * 1000 THEN (t.opens + 999) / 1000 END AS opens
        FROM keys k CROSS JOIN LATERAL beltline._running(v_now, p_name, k.key) r
          CROSS JOIN LATERAL (SELECT CASE WHEN v_limit.interval_us > 0 THEN greatest(coalesce((SELECT b.tat FROM beltline.flow_bucket b WHERE b.name = p_name AND b.key = k.key), 0), v_now * 1000)
            + v_limit.interval_us - greatest(v_limit.burst_us, v_limit.interval_us) END AS opens) t) x
      WHERE x.running > 0 OR x.waiting > 0 OR x.opens < 9000000000000000000 ORDER BY x.key COLLATE "C" LIMIT p_limit;
END $$;

-- At most 10 ids of messages that hold places of a bucket whose concurrency is limited.
CREATE FUNCTION beltline._holders(p_now bigint, p_name text, p_key text) RETURNS uuid[] LANGUAGE plpgsql STABLE AS $$
BEGIN
  RETURN ARRAY(SELECT r.id FROM (
      SELECT h.id FROM beltline.flow_hold h JOIN beltline.lease e ON e.id = h.id WHERE h.name = p_name AND h.key = p_key AND e.due > p_now
      UNION SELECT e.id FROM beltline.flow_limited q JOIN beltline.lease e ON e.queue = q.queue WHERE p_key = '' AND q.name = p_name AND e.due > p_now) r
    WHERE EXISTS (SELECT FROM beltline.flow_limit l WHERE l.name = p_name AND l.most IS NOT NULL) ORDER BY r.id LIMIT 10);
END $$;

-- Everything that is held against handing out a message that is ready or delayed (`shown`). Instants NULL: does not apply; 9e18: no time is known.
CREATE FUNCTION beltline.standing(p_now bigint, p_id uuid) RETURNS TABLE(
  shown boolean, paused boolean, snoozed bigint, tripped bigint, trying boolean, head uuid, head_state int, name text, key text, opens bigint, holders uuid[],
  whole text, whole_opens bigint, feeds text[], keeper text, tenant text, noisy boolean, ahead bigint) LANGUAGE plpgsql STABLE SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
  v_now bigint := beltline._time(p_now); f beltline.fact := beltline._find(p_id); m beltline.fact; g beltline.flow; v_group bytea; v_lane beltline.flow_lane; v_costs float8[]; r record;
BEGIN
  shown := f.state IN (0, 1) OR f.state = 2 AND f.due <= v_now;
  IF shown IS NOT TRUE THEN
    RETURN NEXT;
    RETURN;
  END IF;
  SELECT q.paused INTO paused FROM beltline.queue q WHERE q.n = f.queue;
  SELECT * INTO g FROM beltline.flow WHERE queue = f.queue;
  g := beltline._judged(g);
  snoozed := CASE WHEN g.snoozed > v_now THEN g.snoozed END;
  tripped := CASE WHEN g.tripped > v_now THEN g.tripped END;
  trying := coalesce(g.trying, false);
  SELECT group_key INTO v_group FROM beltline.body WHERE id = p_id;
  IF v_group IS NOT NULL THEN
    SELECT l.head INTO head FROM beltline.lane l WHERE l.queue = f.queue AND l.group_key = v_group;
    IF head IS NULL THEN   -- a dead one holds it
      SELECT d.id INTO head FROM beltline.dead d WHERE d.queue = f.queue AND d.group_key = v_group ORDER BY d.seq LIMIT 1;
    END IF;
    IF head = p_id THEN
      head := NULL;
    ELSIF head IS NOT NULL THEN
      m := beltline._find(head);
      head_state := CASE WHEN m.state = 0 AND m.since <= v_now OR m.state = 2 AND m.due <= v_now THEN 1 ELSE m.state END;
    END IF;
  END IF;
  IF f.flags & 8 <> 0 THEN
    SELECT l.* INTO v_lane FROM beltline.flow_message x JOIN beltline.flow_lane l ON l.n = x.lane WHERE x.id = p_id;
    SELECT costs INTO v_costs FROM beltline.flow_message WHERE id = p_id;
    SELECT * INTO r FROM beltline._refuses(v_now, v_lane.name, v_costs);
    name := r.name; key := r.key; opens := r.until;
    tenant := v_lane.name[1];
    keeper := beltline._keeper(v_lane.name[2], g.members);
    noisy := coalesce((SELECT s.noisy FROM beltline.flow_share s WHERE s.queue = f.queue AND s.tenant = v_lane.name[1] AND s.owner = keeper), false);
  END IF;
  SELECT * INTO r FROM beltline._limited(v_now, f.queue);
  IF r.room < 1 THEN
    whole := r.name; whole_opens := coalesce(r.opens, 9000000000000000000);
  END IF;
  holders := CASE WHEN name IS NOT NULL THEN beltline._holders(v_now, name, key) WHEN whole IS NOT NULL THEN beltline._holders(v_now, whole, '') ELSE '{}' END;
  feeds := ARRAY(SELECT q.name FROM beltline.stalled s JOIN beltline.queue q ON q.n = s.feed WHERE s.queue = f.queue ORDER BY q.name COLLATE "C");
  SELECT count(*) INTO ahead FROM (
    SELECT FROM (
      SELECT w.id FROM beltline.ready w WHERE v_lane.n IS NULL AND w.queue = f.queue AND (w.rank, w.seq) < (f.rank, f.seq)
      UNION ALL SELECT w.id FROM beltline.flow_ready w WHERE w.lane = v_lane.n AND (w.rank, w.seq) < (f.rank, f.seq)
      UNION ALL SELECT o.id FROM (
        SELECT w.id, w.flags FROM beltline.blocked w WHERE w.queue = f.queue AND (w.was = 1 OR w.since <= v_now) AND (w.rank, w.seq) < (f.rank, f.seq)
        UNION ALL SELECT w.id, w.flags FROM beltline.delayed w WHERE w.queue = f.queue AND w.since <= v_now AND (w.rank, w.seq) < (f.rank, f.seq)) o
        WHERE CASE WHEN v_lane.n IS NULL THEN o.flags & 8 = 0 ELSE (SELECT x.lane FROM beltline.flow_message x WHERE x.id = o.id) = v_lane.n END) a
    LIMIT 1000) few;
  RETURN NEXT;
END $$;
