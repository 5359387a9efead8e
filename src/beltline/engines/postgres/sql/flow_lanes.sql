-- Lanes and shares: who stands, who is next. Only the holder of the queue's row of `flow` changes them, in `_flow_receive`.

-- ------------------------------------------------------------------------------------------------------------- in
-- Tenant, sticky key, then limit and key of each claim; and the digest of it and of the priority, because an index holds no more than 2,700 bytes.
CREATE FUNCTION beltline._lane_name(p_flow jsonb) RETURNS text[] LANGUAGE sql IMMUTABLE AS $$
  SELECT ARRAY[coalesce(p_flow->>'t', ''), coalesce(p_flow->>'s', '')] || ARRAY(
    SELECT u.part FROM jsonb_array_elements(p_flow->'c') WITH ORDINALITY AS c(claim, place) CROSS JOIN LATERAL (VALUES (0, claim->>0), (1, claim->>1)) AS u(n, part)
    ORDER BY c.place, u.n)
$$;

CREATE FUNCTION beltline._lane_code(p_flow jsonb) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$ SELECT decode(p_flow->>'k', 'hex') $$;

-- Whether it needs a lane: `unique` alone does not.
CREATE FUNCTION beltline._is_shaped(p_flow jsonb) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT coalesce(p_flow ?| '{t,s,c}', false) $$;

-- The lanes of these messages, made if they are new, locked against upkeep that drops empty ones.
CREATE FUNCTION beltline._flow_lanes(p_queues int[], p_flows jsonb[], p_prios smallint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_queues int[] := ARRAY(SELECT DISTINCT q FROM unnest(p_queues) q ORDER BY q); v_queue int; v_wanted bigint; v_found bigint;
BEGIN
  FOREACH v_queue IN ARRAY v_queues LOOP
    IF NOT EXISTS (SELECT FROM beltline.flow WHERE queue = v_queue AND shaped) THEN
      PERFORM beltline._gate(v_queue);
      UPDATE beltline.flow SET shaped = true WHERE queue = v_queue AND NOT shaped;
    END IF;
  END LOOP;
  LOOP
    WITH wanted AS (
      SELECT DISTINCT ON (i.queue, k.code) i.queue, k.code, i.flow, i.prio FROM unnest(p_queues, p_flows, p_prios) AS i(queue, flow, prio)
        CROSS JOIN LATERAL (SELECT beltline._lane_code(i.flow) AS code) k ORDER BY i.queue, k.code),
    missing AS (
      SELECT queue, code, beltline._lane_name(flow) AS name, prio FROM wanted w
        WHERE NOT EXISTS (SELECT FROM beltline.flow_lane l WHERE l.queue = w.queue AND l.code = w.code) ORDER BY queue, code),
    made AS (INSERT INTO beltline.flow_lane(queue, code, name, prio) SELECT queue, code, name, prio FROM missing ON CONFLICT DO NOTHING),
    claimed AS (INSERT INTO beltline.flow_claimed(name, queue)
      SELECT DISTINCT m.name[i], m.queue FROM missing m CROSS JOIN LATERAL generate_series(3, cardinality(m.name), 2) i ORDER BY 1, 2 ON CONFLICT DO NOTHING)
    SELECT count(*) INTO v_wanted FROM wanted;
    SELECT count(*) INTO v_found FROM (
      SELECT l.n FROM (SELECT DISTINCT i.queue, k.code FROM unnest(p_queues, p_flows, p_prios) AS i(queue, flow, prio)
          CROSS JOIN LATERAL (SELECT beltline._lane_code(i.flow) AS code) k ORDER BY 1, 2) w
        CROSS JOIN LATERAL (SELECT n FROM beltline.flow_lane x WHERE x.queue = w.queue AND x.code = w.code OFFSET 0 FOR KEY SHARE) l) held;
    EXIT WHEN v_found = v_wanted;   -- upkeep may have dropped an empty one in between
  END LOOP;
END $$;

-- Messages just stored (their bodies are there) enter their lanes.
CREATE FUNCTION beltline._flow_store(p_now bigint, p_items beltline.item[], p_ids uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  WITH own AS MATERIALIZED (
    SELECT DISTINCT ON (b.seq) b.id, b.seq, b.queue, b.flags, b.expires, coalesce(b.due, p_now) AS since, coalesce(b.due, p_now) - b.prio * q.ageing_ms AS rank,
        b.due IS NOT NULL AS late, l.n AS lane, i.flow
      FROM unnest(p_items) i CROSS JOIN LATERAL (SELECT * FROM beltline.body x WHERE x.id = i.id OFFSET 0) b
        CROSS JOIN LATERAL (SELECT ageing_ms FROM beltline.queue x WHERE x.n = b.queue OFFSET 0) q
        CROSS JOIN LATERAL (SELECT n FROM beltline.flow_lane x WHERE x.queue = b.queue AND x.code = beltline._lane_code(i.flow) OFFSET 0) l
      WHERE i.id = ANY(p_ids) AND b.flags & 8 <> 0 ORDER BY b.seq),
  r AS (INSERT INTO beltline.flow_ready(lane, rank, seq, since, id, queue, epoch, failed, lost, flags, expires)
    SELECT lane, rank, seq, since, id, queue, 0, 0, 0, flags, expires FROM own WHERE flags & 1 = 0 AND NOT late),
  m AS (INSERT INTO beltline.flow_message(id, queue, lane, costs, flow)
    SELECT id, queue, lane, ARRAY(SELECT (c.claim->>2)::float8 FROM jsonb_array_elements(flow->'c') WITH ORDINALITY AS c(claim, place) ORDER BY c.place), flow FROM own)
  INSERT INTO beltline.flow_event(queue, verb, lane, ready, heads, messages, cost)
    SELECT queue, beltline._verb(), lane, count(*) FILTER (WHERE NOT late), count(*) FILTER (WHERE NOT late AND flags & 1 = 0), count(*),
      (array_agg((flow->>'w')::bigint ORDER BY seq DESC))[1] FROM own GROUP BY queue, lane ORDER BY max(seq);
END $$;

-- Messages that a move has brought (p_new of p_ids): their lanes, the places of what is leased, their unique keys.
CREATE FUNCTION beltline._flow_arrived(p_new uuid[], p_ids uuid[], p_flows jsonb[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM beltline._unique(b.queue, b.id, i.flow) FROM unnest(p_ids, p_flows) AS i(id, flow) JOIN beltline.body b ON b.id = i.id
    WHERE i.flow ? 'u' AND i.id = ANY(p_new) ORDER BY b.seq;
  INSERT INTO beltline.flow_message(id, queue, lane, costs, flow)
    SELECT b.id, f.queue, l.n, ARRAY(SELECT (c.claim->>2)::float8 FROM jsonb_array_elements(i.flow->'c') WITH ORDINALITY AS c(claim, place) ORDER BY c.place), i.flow
      FROM unnest(p_ids, p_flows) AS i(id, flow) JOIN beltline.body b ON b.id = i.id CROSS JOIN LATERAL (SELECT (x).queue, (x).state FROM beltline._find(b.id) x) f
        JOIN beltline.flow_lane l ON l.queue = f.queue AND l.code = beltline._lane_code(i.flow)
      WHERE i.id = ANY(p_new) AND b.flags & 8 <> 0 AND f.state <> 3;
  INSERT INTO beltline.flow_ready(lane, rank, seq, since, id, queue, epoch, failed, lost, flags, expires, why, error)
    SELECT m.lane, r.rank, r.seq, r.since, r.id, r.queue, r.epoch, r.failed, r.lost, r.flags, r.expires, r.why, r.error
      FROM beltline.ready r JOIN beltline.flow_message m ON m.id = r.id WHERE r.id = ANY(p_new);
  DELETE FROM beltline.ready WHERE id = ANY(p_new) AND flags & 8 <> 0;
  INSERT INTO beltline.flow_hold(id, name, key)
    SELECT m.id, l.name[2 * c + 1], l.name[2 * c + 2] FROM beltline.flow_message m JOIN beltline.lease e ON e.id = m.id JOIN beltline.flow_lane l ON l.n = m.lane
      CROSS JOIN LATERAL generate_series(1, cardinality(m.costs)) c WHERE m.id = ANY(p_new);
  INSERT INTO beltline.flow_event(queue, verb, lane, ready, heads, leased, messages, cost)
    SELECT m.queue, beltline._verb(), m.lane, count(*) FILTER (WHERE f.state = 1), count(*) FILTER (WHERE f.state = 1 AND NOT f.blocked), count(*) FILTER (WHERE f.state = 2),
        count(*), (array_agg((m.flow->>'w')::bigint ORDER BY f.seq DESC))[1]
      FROM beltline.flow_message m CROSS JOIN LATERAL beltline._find(m.id) f WHERE m.id = ANY(p_new) GROUP BY m.queue, m.lane ORDER BY max(f.seq);
END $$;

-- A message with a lane stands in it.
CREATE FUNCTION beltline._put_in_lane(f beltline.fact) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  WITH stands AS (
    INSERT INTO beltline.flow_ready(lane, rank, seq, since, id, queue, epoch, failed, lost, flags, expires, why, error)
      SELECT lane, f.rank, f.seq, f.since, f.id, queue, f.epoch, f.failed, f.lost, f.flags, f.expires, f.why, f.error FROM beltline.flow_message WHERE id = f.id
      RETURNING queue, lane)
    INSERT INTO beltline.flow_event(queue, verb, lane, heads) SELECT queue, beltline._verb(), lane, 1 FROM stands;
END $$;

-- A dead one is redriven: it enters a queue, perhaps another one.
CREATE FUNCTION beltline._flow_redriven(p_id uuid, p_queue int, p_prio smallint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE m beltline.flow_message; v_lane int;
BEGIN
  SELECT * INTO m FROM beltline.flow_message WHERE id = p_id;
  IF m.queue <> p_queue THEN
    PERFORM beltline._flow_lanes(ARRAY[p_queue], ARRAY[m.flow], ARRAY[p_prio]);
    SELECT n INTO v_lane FROM beltline.flow_lane WHERE queue = p_queue AND code = beltline._lane_code(m.flow);
    UPDATE beltline.flow_message SET queue = p_queue, lane = v_lane WHERE id = p_id;
    INSERT INTO beltline.flow_event(queue, verb, lane, messages, cost)
      VALUES (m.queue, beltline._verb(), m.lane, -1, NULL), (p_queue, beltline._verb(), v_lane, 1, (m.flow->>'w')::bigint);
  END IF;
  PERFORM beltline._flow_moved(ARRAY[p_id], 4, 1);
END $$;

-- ------------------------------------------------------------------------------------------------------------- what has happened since
-- Source: core.flow.keeper.
CREATE FUNCTION beltline._keeper(p_sticky text, p_members text[]) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT coalesce((SELECT w FROM unnest(p_members) w WHERE p_sticky <> ''
    ORDER BY sha256(convert_to(p_sticky || E'\n' || w, 'UTF8')) DESC, w COLLATE "C" DESC LIMIT 1), '')
$$;

-- Worker time lately, of this window (150 s) and the one before.
CREATE FUNCTION beltline._recent(p_now bigint, p_span bigint, p_work bigint, p_before bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN p_now / 150000 = p_span THEN p_work + p_before WHEN p_now / 150000 = p_span + 1 THEN p_work ELSE 0 END
$$;

-- Source: core.flow.noisy.
CREATE FUNCTION beltline._is_noisy(p_leased bigint, p_of_all bigint, p_work bigint, p_work_of_all bigint) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT p_leased >= 30 AND p_leased * 10 > p_of_all OR p_work * 10 > p_work_of_all
$$;

-- Lanes without a share get theirs, and those that another worker keeps now.
CREATE FUNCTION beltline._flow_shares(p_queue int, p_members text[], p_lanes int[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_tenants text[]; v_owners text[];
BEGIN
  SELECT array_agg(k.tenant ORDER BY k.n), array_agg(k.owner ORDER BY k.n) INTO v_tenants, v_owners FROM (
    SELECT i.n, l.name[1] AS tenant, CASE WHEN l.name[2] = '' THEN '' ELSE beltline._keeper(l.name[2], p_members) END AS owner
      FROM unnest(p_lanes) WITH ORDINALITY AS i(lane, n) CROSS JOIN LATERAL (SELECT name FROM beltline.flow_lane x WHERE x.n = i.lane OFFSET 0) l) k;
  INSERT INTO beltline.flow_share(queue, tenant, owner, nobody, cost)
    SELECT p_queue, k.tenant, k.owner, k.tenant = '' AND k.owner = '',
        coalesce((SELECT o.cost FROM beltline.flow_share o WHERE o.queue = p_queue AND o.tenant = k.tenant LIMIT 1), 1000000)
      FROM (SELECT DISTINCT u.tenant, u.owner FROM unnest(v_tenants, v_owners) AS u(tenant, owner)) k
    ON CONFLICT DO NOTHING;
  UPDATE beltline.flow_lane l SET share = s.n
    FROM unnest(p_lanes, v_tenants, v_owners) AS u(lane, tenant, owner)
      CROSS JOIN LATERAL (SELECT n FROM beltline.flow_share x WHERE x.queue = p_queue AND x.tenant = u.tenant AND x.owner = u.owner OFFSET 0) s
    WHERE l.n = u.lane;
END $$;

-- What these shares (not nobody's) would give next. One that begins to have something starts at the queue's turn at least; p_begun: those that had nothing in between.
CREATE FUNCTION beltline._flow_stand(p_ageing bigint, p_turn bigint, p_shares int[], p_begun int[] DEFAULT '{}') RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  UPDATE beltline.flow_share s SET standing = f.prio IS NOT NULL, tag = f.tag, place = f.tag - coalesce(f.prio, 0) * p_ageing * 1000
    FROM (SELECT o.n, h.prio, CASE WHEN h.prio IS NOT NULL AND (NOT o.standing OR o.n IN (SELECT b.n FROM unnest(p_begun) AS b(n))) THEN greatest(o.tag, p_turn) ELSE o.tag END AS tag
      FROM unnest(p_shares) AS i(n) CROSS JOIN LATERAL (SELECT n, standing, tag FROM beltline.flow_share x WHERE x.n = i.n AND NOT x.nobody OFFSET 0) o
        LEFT JOIN LATERAL (SELECT prio FROM beltline.flow_lane l WHERE l.share = i.n AND l.closed_limit IS NULL AND l.head_seq IS NOT NULL
          ORDER BY l.head_rank, l.head_seq LIMIT 1) h ON true) f
    WHERE s.n = f.n;
END $$;

-- Lanes (and the shares that have them) after what was told of them. touched: shares whose standing is to be looked at; begun: those that had nothing to give in between.
-- A purge may have told of very many lanes, many times each: nothing here joins one of these lists with another, which a planner that expects few does row by row with row by row.
-- Rows are looked up by index, sums are windows, and membership is IN over unnest, which is hashed (= ANY goes through the array for every row).
CREATE FUNCTION beltline._flow_changed(INOUT g beltline.flow, p_events beltline.flow_event[], p_lanes int[], OUT touched int[], OUT begun int[]) LANGUAGE plpgsql AS $$
DECLARE v_emptied int[]; v_new int[];
BEGIN
  begun := '{}';
  SELECT array_agg(i.n), coalesce(bool_or(l.name[2] <> ''), false) OR g.sticky INTO v_new, g.sticky
    FROM unnest(p_lanes) AS i(n) CROSS JOIN LATERAL (SELECT name FROM beltline.flow_lane x WHERE x.n = i.n AND x.share IS NULL OFFSET 0) l;
  IF v_new IS NOT NULL THEN
    PERFORM beltline._flow_shares(g.queue, g.members, v_new);
  END IF;
  -- Lanes that had nothing ready after some verb: a closed one has opened then. Shares that had nothing to give after some verb, by the lanes that were open.
  IF EXISTS (SELECT FROM unnest(p_events) WHERE ready < 0 OR heads < 0) THEN   -- not by sends and settles
    WITH verb AS (SELECT lane, verb, min(n) AS n, sum(ready) AS ready FROM unnest(p_events) WHERE lane IS NOT NULL GROUP BY lane, verb)
      SELECT array_agg(DISTINCT r.lane) INTO v_emptied FROM (
        SELECT v.lane, l.ready + sum(v.ready) OVER (PARTITION BY v.lane ORDER BY v.n) AS ready
          FROM verb v CROSS JOIN LATERAL (SELECT ready FROM beltline.flow_lane x WHERE x.n = v.lane OFFSET 0) l) r WHERE r.ready <= 0;
    WITH moves AS (   -- what each share had at first, and what each verb did to it
      SELECT l.share, 0::bigint AS n, sum(CASE WHEN l.closed_limit IS NULL THEN l.heads ELSE 0 END) AS heads
        FROM unnest(p_lanes) AS i(n) CROSS JOIN LATERAL (SELECT share, heads, closed_limit FROM beltline.flow_lane x WHERE x.n = i.n OFFSET 0) l
        WHERE l.closed_limit IS NULL OR i.n IN (SELECT e.n FROM unnest(v_emptied) AS e(n)) GROUP BY l.share
      UNION ALL SELECT l.share, min(e.n), sum(e.heads)
        FROM unnest(p_events) e CROSS JOIN LATERAL (SELECT share, closed_limit FROM beltline.flow_lane x WHERE x.n = e.lane OFFSET 0) l
        WHERE l.closed_limit IS NULL OR e.lane IN (SELECT e.n FROM unnest(v_emptied) AS e(n)) GROUP BY l.share, e.verb)
      SELECT coalesce(array_agg(DISTINCT r.share), '{}') INTO begun FROM (
        SELECT m.share, m.n, sum(m.heads) OVER (PARTITION BY m.share ORDER BY m.n) AS heads FROM moves m) r
      WHERE r.n > 0 AND r.heads <= 0 AND NOT EXISTS (SELECT FROM beltline.flow_lane o
        WHERE o.share = r.share AND o.closed_limit IS NULL AND o.head_seq IS NOT NULL AND o.n NOT IN (SELECT i.n FROM unnest(p_lanes) AS i(n)));
  END IF;
  UPDATE beltline.flow_lane l SET ready = l.ready + d.ready, heads = l.heads + d.heads, leased = l.leased + d.leased, messages = l.messages + d.messages,
      head_rank = CASE WHEN d.moved THEN h.rank ELSE l.head_rank END, head_seq = CASE WHEN d.moved THEN h.seq ELSE l.head_seq END,
      closed_limit = CASE WHEN NOT d.emptied THEN l.closed_limit END, closed_key = CASE WHEN NOT d.emptied THEN l.closed_key END,
      closed_until = CASE WHEN NOT d.emptied THEN l.closed_until END, closed_at = CASE WHEN NOT d.emptied THEN l.closed_at END
    FROM (SELECT lane, sum(ready)::int AS ready, sum(heads)::int AS heads, sum(leased)::int AS leased, sum(messages)::int AS messages, bool_or(ready <> 0 OR heads <> 0) AS moved,
        lane IN (SELECT e.n FROM unnest(v_emptied) AS e(n)) AS emptied FROM unnest(p_events) WHERE lane IS NOT NULL GROUP BY lane) d
      LEFT JOIN LATERAL (SELECT rank, seq FROM beltline.flow_ready r WHERE d.moved AND r.lane = d.lane ORDER BY rank, seq LIMIT 1) h ON true
    WHERE l.n = d.lane AND (d.moved OR d.leased <> 0 OR d.messages <> 0 OR d.emptied);
  WITH share AS (SELECT l.share AS n, sum(e.leased)::int AS leased FROM unnest(p_events) e
      CROSS JOIN LATERAL (SELECT share FROM beltline.flow_lane x WHERE x.n = e.lane OFFSET 0) l WHERE e.leased <> 0 GROUP BY l.share),
  changed AS (UPDATE beltline.flow_share s SET leased = s.leased + share.leased FROM share WHERE s.n = share.n RETURNING s.nobody, share.leased)
    SELECT g.lent + coalesce(sum(leased) FILTER (WHERE NOT nobody), 0) INTO g.lent FROM changed;
  IF EXISTS (SELECT FROM unnest(p_events) WHERE cost IS NOT NULL) THEN
    UPDATE beltline.flow_share s SET cost = c.cost FROM (
        SELECT DISTINCT ON (l.tenant) l.tenant, e.cost FROM unnest(p_events) e
          CROSS JOIN LATERAL (SELECT name[1] AS tenant FROM beltline.flow_lane x WHERE x.n = e.lane OFFSET 0) l WHERE e.cost IS NOT NULL ORDER BY l.tenant, e.n DESC) c
      WHERE s.queue = g.queue AND s.tenant = c.tenant AND s.cost <> c.cost;
  END IF;
  touched := ARRAY(SELECT DISTINCT l.share FROM (
      SELECT DISTINCT lane FROM unnest(p_events) WHERE lane IS NOT NULL AND (ready <> 0 OR heads <> 0 OR leased = 0 AND messages = 0 AND work IS NULL)) AS i(n)   -- not by settles
    CROSS JOIN LATERAL (SELECT share FROM beltline.flow_lane x WHERE x.n = i.n OFFSET 0) l);
END $$;

-- Add up what was told since the last receive: lanes, shares, work, places that are free again. more: not all of it, for a receive must end in time, and what it has added up must stay.
CREATE FUNCTION beltline._flow_gather(INOUT g beltline.flow, OUT touched int[], OUT begun int[], OUT more boolean) LANGUAGE plpgsql AS $$
DECLARE v_events beltline.flow_event[]; v_lanes int[]; v_span bigint; v_sums bigint[]; v_freed record; r record; v_last bigint;
BEGIN
  touched := '{}';
  begun := '{}';
  v_last := (SELECT verb FROM beltline.flow_event WHERE queue = g.queue ORDER BY verb OFFSET 20000 LIMIT 1);
  more := v_last IS NOT NULL;
  IF more THEN   -- whole verbs, those that began first
    WITH gone AS (DELETE FROM beltline.flow_event WHERE queue = g.queue AND verb <= v_last RETURNING *)
      SELECT array_agg(ROW(gone.*)::beltline.flow_event ORDER BY n) INTO v_events FROM gone;
  ELSE
    WITH gone AS (DELETE FROM beltline.flow_event WHERE queue = g.queue RETURNING *)
      SELECT array_agg(ROW(gone.*)::beltline.flow_event ORDER BY n) INTO v_events FROM gone;
  END IF;
  IF v_events IS NULL THEN
    RETURN;
  END IF;
  v_lanes := ARRAY(SELECT DISTINCT lane FROM unnest(v_events) WHERE lane IS NOT NULL ORDER BY lane);
  IF v_lanes <> '{}' THEN
    SELECT * INTO r FROM beltline._flow_changed(g, v_events, v_lanes);
    g := r.g;
    touched := r.touched;
    begun := r.begun;
  END IF;
  SELECT max(at) / 150000 INTO v_span FROM unnest(v_events) WHERE work IS NOT NULL;
  IF v_span IS NOT NULL THEN
    PERFORM beltline._flow_worked(g.queue, v_events);
    v_span := greatest(v_span, g.span);
    SELECT ARRAY[coalesce(sum(work) FILTER (WHERE at / 150000 = v_span), 0) + CASE WHEN g.span = v_span THEN g.work ELSE 0 END,
        coalesce(sum(work) FILTER (WHERE at / 150000 = v_span - 1), 0) + CASE g.span WHEN v_span THEN g.work_before WHEN v_span - 1 THEN g.work ELSE 0 END]
      INTO v_sums FROM unnest(v_events) WHERE work IS NOT NULL;
    g.span := v_span; g.work := v_sums[1]; g.work_before := v_sums[2];
  END IF;
  FOR v_freed IN SELECT name, key, sum(places)::int AS places FROM unnest(v_events) WHERE name IS NOT NULL GROUP BY name, key LOOP
    WITH opened AS (UPDATE beltline.flow_lane SET closed_limit = NULL, closed_key = NULL, closed_until = NULL, closed_at = NULL WHERE n = ANY(ARRAY(
        SELECT n FROM beltline.flow_lane WHERE closed_limit = v_freed.name AND closed_key = v_freed.key AND queue = g.queue
          ORDER BY closed_at, name, prio LIMIT v_freed.places)) RETURNING share)
      SELECT touched || coalesce(array_agg(share), '{}') INTO touched FROM opened;
  END LOOP;
END $$;

-- Work done, for the shares it was done for. A message without a lane is nobody's.
CREATE FUNCTION beltline._flow_worked(p_queue int, p_events beltline.flow_event[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  WITH done AS (
    SELECT coalesce(l.share, (SELECT n FROM beltline.flow_share s WHERE s.queue = p_queue AND s.tenant = '' AND s.owner = '')) AS share, e.at / 150000 AS span, sum(e.work)::bigint AS work
      FROM unnest(p_events) e LEFT JOIN LATERAL (SELECT share FROM beltline.flow_lane x WHERE x.n = e.lane OFFSET 0) l ON true
      WHERE e.work IS NOT NULL GROUP BY 1, 2),
  late AS (SELECT d.*, greatest(max(d.span) OVER (PARTITION BY d.share), s.span) AS last
    FROM done d CROSS JOIN LATERAL (SELECT span FROM beltline.flow_share x WHERE x.n = d.share OFFSET 0) s),
  sums AS (SELECT share, last AS span, coalesce(sum(work) FILTER (WHERE span = last), 0) AS now, coalesce(sum(work) FILTER (WHERE span = last - 1), 0) AS before
    FROM late GROUP BY share, last)
  UPDATE beltline.flow_share s SET span = n.span, work = n.now + CASE WHEN s.span = n.span THEN s.work ELSE 0 END,
      work_before = n.before + CASE s.span WHEN n.span THEN s.work_before WHEN n.span - 1 THEN s.work ELSE 0 END
    FROM sums n WHERE s.n = n.share;
END $$;

-- The workers that keep sticky keys are others: lanes whose keeper is another one are handed over. Returns the shares concerned.
CREATE FUNCTION beltline._flow_hand_over(INOUT g beltline.flow, p_members text[], OUT touched int[]) LANGUAGE plpgsql AS $$
DECLARE v_lanes int[]; v_before int[];
BEGIN
  g.members := p_members;
  SELECT array_agg(l.n), array_agg(l.share) INTO v_lanes, v_before
    FROM (SELECT n, share, name FROM beltline.flow_lane WHERE queue = g.queue AND name[2] <> '' AND share IS NOT NULL) l
      JOIN beltline.flow_share s ON s.n = l.share WHERE s.owner <> beltline._keeper(l.name[2], p_members);
  touched := '{}';
  IF v_lanes IS NULL THEN
    RETURN;
  END IF;
  PERFORM beltline._flow_shares(g.queue, p_members, v_lanes);
  WITH moved AS (
    SELECT share, sum(leased)::int AS leased FROM (
      SELECT b.share, -l.leased AS leased FROM unnest(v_lanes, v_before) AS b(lane, share) JOIN beltline.flow_lane l ON l.n = b.lane
      UNION ALL SELECT l.share, l.leased FROM beltline.flow_lane l WHERE l.n = ANY(v_lanes)) m GROUP BY share),
  changed AS (UPDATE beltline.flow_share s SET leased = s.leased + moved.leased FROM moved WHERE s.n = moved.share RETURNING s.n, s.nobody, moved.leased)
    SELECT array_agg(n), g.lent + coalesce(sum(leased) FILTER (WHERE NOT nobody), 0) INTO touched, g.lent FROM changed;
END $$;

-- What is settled apart from receives, so that what nobody uses any more can be dropped: lanes without messages, shares that have no lead over the queue's turn
-- or have had nothing to do for 7 days (4032 windows): where every tenant comes but once the turn stands still, and all of them would be ahead of it for ever.
CREATE FUNCTION beltline._flow_tidy(p_now bigint, p_queue int, p_limit int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE g beltline.flow; r record; v_lanes int[]; v_ageing bigint := (SELECT ageing_ms FROM beltline.queue WHERE n = p_queue);
BEGIN
  IF NOT EXISTS (SELECT FROM beltline.flow_lane WHERE queue = p_queue AND messages = 0 AND closed_limit IS NULL)
      AND NOT EXISTS (SELECT FROM beltline.flow_event WHERE queue = p_queue AND messages < 0) THEN
    RETURN;
  END IF;
  PERFORM FROM beltline.flow WHERE queue = p_queue FOR NO KEY UPDATE SKIP LOCKED;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  SELECT * INTO g FROM beltline.flow WHERE queue = p_queue;
  SELECT * INTO r FROM beltline._flow_gather(g);
  g := r.g;
  PERFORM beltline._flow_stand(v_ageing, g.turn, ARRAY(SELECT DISTINCT t FROM unnest(r.touched) t), r.begun) WHERE r.touched <> '{}';
  UPDATE beltline.flow_share SET standing = false WHERE n = ANY(r.begun) AND nobody AND NOT EXISTS (SELECT FROM beltline.ready o WHERE o.queue = p_queue);
  UPDATE beltline.flow SET sticky = g.sticky, lent = g.lent, span = g.span, work = g.work, work_before = g.work_before WHERE queue = p_queue;
  SELECT array_agg(n) INTO v_lanes FROM (SELECT n FROM beltline.flow_lane WHERE queue = p_queue AND messages = 0 AND closed_limit IS NULL ORDER BY n
    LIMIT p_limit FOR UPDATE SKIP LOCKED) empty;
  DELETE FROM beltline.flow_lane l WHERE n = ANY(v_lanes) AND NOT EXISTS (SELECT FROM beltline.flow_event e WHERE e.queue = p_queue AND e.lane = l.n);
  DELETE FROM beltline.flow_share s WHERE n = ANY(ARRAY(SELECT n FROM beltline.flow_share o WHERE o.queue = p_queue AND NOT o.nobody AND NOT o.noisy AND NOT o.standing
      AND o.leased = 0 AND (o.tag <= g.turn AND o.span < p_now / 150000 - 1 OR o.span BETWEEN 1 AND p_now / 150000 - 4032)
      AND NOT EXISTS (SELECT FROM beltline.flow_lane l WHERE l.share = o.n) LIMIT p_limit));
  DELETE FROM beltline.flow_bucket b WHERE ctid = ANY(ARRAY(SELECT ctid FROM beltline.flow_bucket WHERE tat < (p_now - 3600000) * 1000 LIMIT p_limit FOR UPDATE SKIP LOCKED));
END $$;
