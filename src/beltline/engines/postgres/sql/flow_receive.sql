-- A receive of a queue with flow control. It holds the queue's row of `flow`, so nothing here changes meanwhile. Who is next: flow_pick.sql.

-- Lease these rows of `ready` and of `flow_ready`, but for those that somebody else is about to take away. ids, lanes: of those that have a lane.
CREATE FUNCTION beltline._take(p_now bigint, p_queue int, p_plain tid[], p_laned tid[], p_until bigint, p_worker int, OUT took int, OUT parked int, OUT ids uuid[], OUT lanes int[]) LANGUAGE plpgsql AS $$
DECLARE v_took int; v_parked int;
BEGIN
  took := 0; parked := 0; ids := '{}'; lanes := '{}';
  IF p_plain <> '{}' THEN
    WITH taken AS (
      DELETE FROM beltline.ready WHERE ctid = ANY(ARRAY(SELECT ctid FROM beltline.ready r WHERE r.ctid = ANY(p_plain) FOR UPDATE SKIP LOCKED)) RETURNING *),
    leased AS (INSERT INTO beltline.lease(id, due, rank, seq, since, started, queue, epoch, failed, lost, worker, flags, error)
      SELECT id, p_until, rank, seq, since, p_now, p_queue, epoch + 1, failed, lost, p_worker, flags, error FROM taken)
    SELECT count(*), count(*) FILTER (WHERE beltline._is_parked(why)) INTO took, parked FROM taken;
  END IF;
  IF p_laned <> '{}' THEN
    WITH taken AS (
      DELETE FROM beltline.flow_ready WHERE ctid = ANY(ARRAY(SELECT ctid FROM beltline.flow_ready r WHERE r.ctid = ANY(p_laned) FOR UPDATE SKIP LOCKED)) RETURNING *),
    leased AS (INSERT INTO beltline.lease(id, due, rank, seq, since, started, queue, epoch, failed, lost, worker, flags, error)
      SELECT id, p_until, rank, seq, since, p_now, p_queue, epoch + 1, failed, lost, p_worker, flags, error FROM taken)
    SELECT count(*), count(*) FILTER (WHERE beltline._is_parked(why)), array_agg(id), array_agg(lane) INTO v_took, v_parked, ids, lanes FROM taken;
    took := took + v_took;
    parked := parked + v_parked;
  END IF;
END $$;

-- Leases that are over: as `_over`, but all that end by themselves first, and then each start as the limits allow. What may not start again stays as it is.
-- room: how many may start here after them.
CREATE FUNCTION beltline._flow_again(p_now bigint, g beltline.flow, p_limit int, p_until bigint, p_worker int, OUT ids uuid[], OUT room bigint, OUT opens bigint) LANGUAGE plpgsql AS $$
DECLARE f beltline.fact; v_max int; v_reason text; v_again beltline.fact[] := '{}'; v_refused record; m record; v_ended int := 0; v_queue int := g.queue; v_opens bigint;
BEGIN
  ids := '{}';
  SELECT max_deliveries INTO v_max FROM beltline.queue WHERE n = v_queue;
  FOR f IN SELECT 2::smallint, false, l.queue, l.seq, l.id, l.rank, l.since, l.epoch, l.failed, l.lost, l.flags, NULL::bigint, NULL::text, l.error, l.due, l.started, l.worker
      FROM beltline.lease l WHERE l.ctid = ANY(ARRAY(
        SELECT ctid FROM beltline.lease WHERE queue = v_queue AND due <= p_now ORDER BY due, seq LIMIT p_limit + 1000 FOR UPDATE SKIP LOCKED)) ORDER BY l.due, l.seq LOOP
    SELECT reason INTO v_reason FROM beltline.asked WHERE id = f.id;
    IF v_reason IS NULL AND f.lost + 1 < v_max THEN
      v_again := v_again || f;
    ELSIF beltline._last_over(p_now, f, v_reason) THEN
      v_ended := v_ended + 1;
    END IF;
  END LOOP;
  PERFORM beltline._left(v_queue, v_ended) WHERE v_ended > 0;
  room := p_limit;
  IF g.limited THEN
    SELECT least(p_limit, l.room), l.opens INTO room, v_opens FROM beltline._limited(p_now, v_queue) l;
  END IF;
  IF g.trying AND g.share IS NOT NULL THEN   -- the kill switch lets a few try
    room := least(room, greatest(0, g.tries - g.succeeded - (SELECT count(*) FROM beltline.lease WHERE queue = v_queue AND due > p_now)));
  END IF;
  opens := NULL;
  PERFORM beltline._lock_limits(v_queue) WHERE v_again <> '{}';
  FOREACH f IN ARRAY v_again LOOP
    EXIT WHEN cardinality(ids) >= p_limit;
    IF f.flags & 8 <> 0 THEN
      SELECT l.name, x.costs INTO m FROM beltline.flow_message x JOIN beltline.flow_lane l ON l.n = x.lane WHERE x.id = f.id;
      SELECT * INTO v_refused FROM beltline._refuses(p_now, m.name, m.costs);
    ELSE
      SELECT NULL::text AS name, NULL::bigint AS until INTO v_refused;
    END IF;
    IF v_refused.name IS NOT NULL THEN
      opens := least(opens, v_refused.until);
    ELSIF room - cardinality(ids) < 1 THEN
      opens := least(opens, v_opens);
    ELSE
      PERFORM beltline._note(p_now, f, 'lost', 0, '', beltline._lease_over());
      UPDATE beltline.lease SET epoch = epoch + 1, lost = lost + 1, due = p_until, started = p_now, worker = p_worker WHERE id = f.id;
      IF f.flags & 8 <> 0 THEN
        PERFORM beltline._start(p_now, f.id, m.name, m.costs);
      END IF;
      PERFORM beltline._start_in(p_now, v_queue, 1) WHERE g.limited;
      ids := ids || f.id;
    END IF;
  END LOOP;
  room := room - cardinality(ids);
END $$;

-- What a receive does before it picks: what the others have told, who keeps sticky keys, whose time has come. more: the others have told more than that.
CREATE FUNCTION beltline._flow_prepare(p_now bigint, INOUT g beltline.flow, p_ageing bigint, OUT more boolean) LANGUAGE plpgsql AS $$
DECLARE r record; v_touched int[]; v_begun int[]; v_members text[]; v_total bigint; v_work bigint; v_plain boolean; v_nobody int;
BEGIN
  IF NOT EXISTS (SELECT FROM beltline.flow_share WHERE queue = g.queue AND nobody) THEN
    INSERT INTO beltline.flow_share(queue, tenant, owner, nobody) VALUES (g.queue, '', '', true) ON CONFLICT DO NOTHING;
  END IF;
  SELECT * INTO r FROM beltline._flow_gather(g);
  g := r.g;
  more := r.more;
  v_touched := r.touched;
  v_begun := r.begun;
  SELECT coalesce(array_agg(w.id ORDER BY w.id COLLATE "C"), '{}') INTO v_members FROM beltline.worker w
    WHERE w.seen >= p_now - 10000 AND w.up AND (SELECT name FROM beltline.queue WHERE n = g.queue) = ANY(w.queues);
  IF v_members <> g.members THEN
    SELECT * INTO r FROM beltline._flow_hand_over(g, v_members);
    g := r.g;
    v_touched := v_touched || r.touched;
  END IF;
  WITH opened AS (UPDATE beltline.flow_lane SET closed_limit = NULL, closed_key = NULL, closed_until = NULL, closed_at = NULL WHERE n = ANY(ARRAY(
      SELECT n FROM beltline.flow_lane WHERE queue = g.queue AND closed_limit IS NOT NULL AND closed_until <= p_now ORDER BY closed_until, closed_at, name, prio LIMIT 200)) RETURNING share)
    SELECT v_touched || coalesce(array_agg(share), '{}') INTO v_touched FROM opened;
  PERFORM beltline._flow_stand(p_ageing, g.turn, ARRAY(SELECT DISTINCT t FROM unnest(v_touched) t), v_begun) WHERE v_touched <> '{}';
  -- Nobody's share is looked at by every receive: its messages without a lane tell nothing.
  SELECT n INTO v_nobody FROM beltline.flow_share WHERE queue = g.queue AND nobody AND (NOT standing OR n = ANY(v_begun));
  IF FOUND THEN   -- else it stood at the end of the last one, and is looked at again at the end of this one
    v_plain := EXISTS (SELECT FROM beltline.ready WHERE queue = g.queue AND (expires IS NULL OR expires > p_now));
    UPDATE beltline.flow_share s SET standing = h.stands, tag = CASE WHEN h.stands AND (NOT s.standing OR s.n = ANY(v_begun) AND NOT v_plain) THEN greatest(s.tag, g.turn) ELSE s.tag END
      FROM (SELECT v_plain OR EXISTS (SELECT FROM beltline.flow_lane l WHERE l.share = v_nobody AND l.closed_limit IS NULL AND l.head_seq IS NOT NULL) AS stands) h
      WHERE s.n = v_nobody;
  END IF;
  IF EXISTS (SELECT FROM beltline.flow_share WHERE queue = g.queue AND noisy) THEN
    v_total := beltline._all_leased(g.queue);
    v_work := beltline._recent(p_now, g.span, g.work, g.work_before);
    UPDATE beltline.flow_share s SET noisy = false WHERE queue = g.queue AND noisy
      AND NOT beltline._is_noisy(CASE WHEN nobody THEN v_total - g.lent ELSE leased END, v_total, beltline._recent(p_now, span, work, work_before), v_work);
  END IF;
END $$;

CREATE FUNCTION beltline._all_leased(p_queue int) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
BEGIN
  RETURN coalesce((SELECT leased FROM beltline.tally WHERE queue = p_queue), 0) + coalesce((SELECT sum(leased) FROM beltline.delta WHERE queue = p_queue), 0)::bigint;
END $$;

-- The limits that starts in this queue may be charged to stay as they are until the end of the transaction. Order: `flow` of the queue, then these.
CREATE FUNCTION beltline._lock_limits(p_queue int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM FROM beltline.flow_limit x WHERE x.name IN (SELECT name FROM beltline.flow_claimed c WHERE c.queue = p_queue UNION SELECT name FROM beltline.flow_limited c WHERE c.queue = p_queue)
    ORDER BY x.name FOR NO KEY UPDATE;
END $$;

-- What `receive` gives of this queue, leased (it may hold some that were just being taken away). plain: so many messages without a lane may be taken as well, as they stand in the queue;
-- then `_flow_took` ends it. opens: when time alone will let one of these start that may not start now. starved: there is no room at all.
CREATE FUNCTION beltline._flow_receive(p_now bigint, p_queue int, p_limit int, p_lease bigint, p_who text, p_worker int,
  OUT g beltline.flow, OUT ids uuid[], OUT plain int, OUT opens bigint, OUT starved boolean) LANGUAGE plpgsql AS $$
DECLARE r record; v_until bigint := p_now + p_lease; v_room bigint;
BEGIN
  SELECT * INTO g FROM beltline.flow f WHERE f.queue = p_queue FOR NO KEY UPDATE;
  IF g.share IS NOT NULL THEN
    g := beltline._judge_switch(p_queue);
  END IF;
  ids := '{}'; plain := 0; starved := true;
  IF greatest(g.snoozed, g.tripped) > p_now THEN
    opens := greatest(g.snoozed, g.tripped);
    RETURN;
  END IF;
  PERFORM beltline._lock_limits(p_queue) WHERE g.limited;
  SELECT * INTO r FROM beltline._flow_again(p_now, g, p_limit, v_until, p_worker);
  ids := r.ids;
  opens := r.opens;
  v_room := r.room;
  IF v_room > 0 AND (SELECT feeds FROM beltline.queue WHERE n = p_queue) THEN
    v_room := least(v_room, beltline._room(p_now, p_queue));
  END IF;
  starved := v_room < 1;
  IF starved THEN
    RETURN;
  ELSIF NOT g.shaped THEN
    plain := v_room;
    RETURN;
  END IF;
  SELECT * INTO r FROM beltline._flow_pick(p_now, g, v_room::int, v_until, p_who, p_worker);
  g := r.g;
  ids := ids || r.ids;
  plain := r.plain;
  opens := CASE WHEN r.more THEN p_now ELSE opens END;
  INSERT INTO beltline.delta(queue, ready, delayed, leased, dead, done, parked) SELECT p_queue, -r.took, 0, r.took, 0, 0, -r.parked WHERE r.took > 0;
END $$;

-- When time alone will let something start in a queue that gave nothing. p_lanes: there is room, so that a lane that opens helps.
CREATE FUNCTION beltline._flow_opens(p_now bigint, p_queue int, p_lanes boolean) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
BEGIN
  RETURN least((SELECT x.opens FROM beltline._limited(p_now, p_queue) x),
    CASE WHEN p_lanes THEN (SELECT min(closed_until) FROM beltline.flow_lane WHERE queue = p_queue AND closed_limit IS NOT NULL AND closed_until < 9000000000000000000) END);
END $$;

-- `receive` has taken so many messages without a lane, from p_lowest on, while nothing else stood. p_all: as many as it was allowed to. g: as `_flow_receive` left it.
CREATE FUNCTION beltline._flow_took(p_now bigint, g beltline.flow, p_count int, p_all boolean, p_lowest bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE s beltline.flow_share; v_total bigint;
BEGIN
  PERFORM beltline._start_in(p_now, g.queue, p_count) WHERE g.limited AND p_count > 0;
  IF g.shaped THEN
    SELECT * INTO s FROM beltline.flow_share x WHERE x.queue = g.queue AND x.nobody;
    IF p_count > 0 THEN
      IF NOT s.noisy THEN
        v_total := beltline._all_leased(g.queue) - 1;   -- before the last one: noisy is looked at before each, and these only make it more so
        s.noisy := beltline._is_noisy(v_total - g.lent, v_total, beltline._recent(p_now, s.span, s.work, s.work_before), beltline._recent(p_now, g.span, g.work, g.work_before));
      END IF;
      s.tag := s.tag + p_count * s.cost;
      g.turn := greatest(g.turn, s.tag - s.cost);
    END IF;
    s.standing := p_all AND EXISTS (SELECT FROM beltline.ready o WHERE o.queue = g.queue AND o.rank >= p_lowest AND (o.expires IS NULL OR o.expires > p_now));
    UPDATE beltline.flow_share x SET tag = s.tag, noisy = s.noisy, standing = s.standing WHERE n = s.n AND (x.tag, x.noisy, x.standing) IS DISTINCT FROM (s.tag, s.noisy, s.standing);
    PERFORM beltline._flow_kept(g);
  END IF;
END $$;

CREATE FUNCTION beltline._flow_kept(g beltline.flow) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  UPDATE beltline.flow f SET turn = g.turn, members = g.members, sticky = g.sticky, lent = g.lent, span = g.span, work = g.work, work_before = g.work_before
    WHERE f.queue = g.queue AND (f.turn, f.members, f.sticky, f.lent, f.span, f.work, f.work_before) IS DISTINCT FROM (g.turn, g.members, g.sticky, g.lent, g.span, g.work, g.work_before);
END $$;

-- Of the leases that are being renewed, in their order, those that may be: one that is over needs its places again, which others may have by now.
CREATE FUNCTION beltline._flow_renewed(p_now bigint, p_until bigint, p_queues int[], p_ids uuid[], p_ords int[], OUT ids uuid[], OUT ords int[]) LANGUAGE plpgsql AS $$
DECLARE l record;
BEGIN
  PERFORM FROM beltline.flow WHERE queue = ANY(p_queues) ORDER BY queue FOR NO KEY UPDATE;
  PERFORM beltline._lock_limits(q) FROM unnest(p_queues) q;
  ids := '{}'; ords := '{}';
  FOR l IN SELECT x.id, x.due, x.queue, x.flags, i.ord FROM unnest(p_ids, p_ords) AS i(id, ord) CROSS JOIN LATERAL (SELECT * FROM beltline.lease y WHERE y.id = i.id OFFSET 0) x ORDER BY i.ord LOOP
    CONTINUE WHEN l.due <= p_now AND EXISTS (
      SELECT FROM (
          SELECT h.name, h.key FROM beltline.flow_hold h WHERE h.id = l.id
          UNION SELECT q.name, '' FROM beltline.flow_limited q WHERE q.queue = l.queue) b
        CROSS JOIN LATERAL (SELECT most FROM beltline.flow_limit x WHERE x.name = b.name AND x.most IS NOT NULL OFFSET 0) m
      WHERE (SELECT r.running FROM beltline._running(p_now, b.name, b.key) r) >= m.most);
    UPDATE beltline.lease SET due = p_until WHERE id = l.id AND l.due <= p_now;   -- the next one sees that it has them
    ids := ids || l.id; ords := ords || l.ord;
  END LOOP;
END $$;
