-- A receive of a queue with flow control: who is next, start by start. It holds the queue's row of `flow`, so nothing here changes meanwhile.
--
-- Who is next is worked out in arrays: some shares that stand, first in line, and of each the first messages of its open lanes (`_next_of`). What is taken, and what it makes
-- of lanes and shares, is written at once when the arrays are used up or the receive has enough. Only a message with claims is leased at once: the next one's may be the same.

-- Lease these rows of `ready` and of `flow_ready`, but for those that somebody else is about to take away.
CREATE FUNCTION beltline._take(p_now bigint, p_queue int, p_plain tid[], p_laned tid[], p_until bigint, p_worker int, OUT took int, OUT parked int, OUT lanes int[]) LANGUAGE plpgsql AS $$
DECLARE v_took int; v_parked int;
BEGIN
  took := 0; parked := 0; lanes := '{}';
  IF p_plain <> '{}' THEN
    WITH taken AS (
      DELETE FROM beltline.ready WHERE ctid = ANY(ARRAY(SELECT ctid FROM beltline.ready r WHERE r.ctid = ANY(p_plain) AND r.queue = p_queue FOR UPDATE SKIP LOCKED)) RETURNING *),
    leased AS (INSERT INTO beltline.lease(id, due, rank, seq, since, started, queue, epoch, failed, lost, worker, flags, error)
      SELECT id, p_until, rank, seq, since, p_now, p_queue, epoch + 1, failed, lost, p_worker, flags, error FROM taken)
    SELECT count(*), count(*) FILTER (WHERE beltline._is_parked(why)) INTO took, parked FROM taken;
  END IF;
  IF p_laned <> '{}' THEN
    WITH taken AS (
      DELETE FROM beltline.flow_ready WHERE ctid = ANY(ARRAY(SELECT ctid FROM beltline.flow_ready r WHERE r.ctid = ANY(p_laned) AND r.queue = p_queue FOR UPDATE SKIP LOCKED)) RETURNING *),
    leased AS (INSERT INTO beltline.lease(id, due, rank, seq, since, started, queue, epoch, failed, lost, worker, flags, error)
      SELECT id, p_until, rank, seq, since, p_now, p_queue, epoch + 1, failed, lost, p_worker, flags, error FROM taken)
    SELECT count(*), count(*) FILTER (WHERE beltline._is_parked(why)), array_agg(lane) INTO v_took, v_parked, lanes FROM taken;
    took := took + v_took;
    parked := parked + v_parked;
  END IF;
END $$;

-- The first p_each messages each of these shares would give, share by share (p_shares[1]: nobody's, with the messages that have no lane).
CREATE FUNCTION beltline._next_of(p_now bigint, p_queue int, p_shares int[], p_each int,
  OUT share int[], OUT tids tid[], OUT ids uuid[], OUT lanes int[], OUT prios int[], OUT claims boolean[]) LANGUAGE plpgsql STABLE AS $$
BEGIN
  SELECT array_agg(s.ord::int ORDER BY s.ord, m.rank, m.seq), array_agg(m.ctid ORDER BY s.ord, m.rank, m.seq), array_agg(m.id ORDER BY s.ord, m.rank, m.seq),
      array_agg(m.lane ORDER BY s.ord, m.rank, m.seq), array_agg(m.prio ORDER BY s.ord, m.rank, m.seq), array_agg(m.claims ORDER BY s.ord, m.rank, m.seq)
    INTO share, tids, ids, lanes, prios, claims
    FROM unnest(p_shares) WITH ORDINALITY AS s(n, ord) CROSS JOIN LATERAL (
      SELECT u.* FROM (
        SELECT r.ctid, r.id, r.rank, r.seq, l.n AS lane, l.prio::int AS prio, l.claims
          FROM (SELECT x.n, x.prio, cardinality(x.name) > 2 AS claims FROM beltline.flow_lane x WHERE x.share = s.n AND x.closed_limit IS NULL AND x.head_seq IS NOT NULL
              ORDER BY x.head_rank, x.head_seq LIMIT p_each) l
            CROSS JOIN LATERAL (SELECT y.ctid, y.id, y.rank, y.seq FROM beltline.flow_ready y WHERE y.lane = l.n AND (y.expires IS NULL OR y.expires > p_now)
              ORDER BY y.rank, y.seq LIMIT p_each) r
        UNION ALL SELECT f.ctid, f.id, f.rank, f.seq, NULL, (SELECT b.prio::int FROM beltline.body b WHERE b.id = f.id), false
          FROM (SELECT y.ctid, y.id, y.rank, y.seq FROM beltline.ready y WHERE s.ord = 1 AND y.queue = p_queue AND (y.expires IS NULL OR y.expires > p_now)
            ORDER BY y.rank, y.seq LIMIT p_each) f) u
      ORDER BY u.rank, u.seq LIMIT p_each) m;
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
      CONTINUE;
    END IF;
    DELETE FROM beltline.lease WHERE id = f.id AND epoch = f.epoch;
    CONTINUE WHEN NOT FOUND;   -- it went with its run
    v_ended := v_ended + 1;
    PERFORM beltline._note(p_now, f, 'lost', 0, '', beltline._lease_over());
    f.lost := f.lost + 1;
    IF v_reason IS NOT NULL THEN
      PERFORM beltline._end(p_now, f, 2::smallint, v_reason);
    ELSE
      PERFORM beltline._die(p_now, f, 'poison: ' || f.lost || ' deliveries never answered', '', beltline._lease_over());
    END IF;
    PERFORM beltline._judge_of(p_now, ARRAY[f.id]);
  END LOOP;
  PERFORM beltline._left(v_queue, v_ended) WHERE v_ended > 0;
  SELECT least(p_limit, l.room), l.opens INTO room, v_opens FROM beltline._limited(p_now, v_queue) l;
  IF g.trying AND g.share IS NOT NULL THEN   -- the kill switch lets a few try
    room := least(room, greatest(0, g.tries - g.succeeded - (SELECT count(*) FROM beltline.lease WHERE queue = v_queue AND due > p_now)));
  END IF;
  opens := NULL;
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
      PERFORM beltline._start_in(p_now, v_queue, 1);
      ids := ids || f.id;
    END IF;
  END LOOP;
  room := room - cardinality(ids);
END $$;

-- What a receive does before it picks: what the others have told, who keeps sticky keys, whose time has come. Returns what `flow` is then.
CREATE FUNCTION beltline._flow_prepare(p_now bigint, g beltline.flow, p_ageing bigint) RETURNS beltline.flow LANGUAGE plpgsql AS $$
DECLARE r record; v_touched int[]; v_begun int[]; v_members text[]; v_total bigint; v_work bigint; v_plain boolean; v_nobody int;
BEGIN
  IF NOT EXISTS (SELECT FROM beltline.flow_share WHERE queue = g.queue AND nobody) THEN
    INSERT INTO beltline.flow_share(queue, tenant, owner, nobody) VALUES (g.queue, '', '', true) ON CONFLICT DO NOTHING;
  END IF;
  SELECT * INTO r FROM beltline._flow_gather(g);
  g := r.g;
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
  RETURN g;
END $$;

CREATE FUNCTION beltline._all_leased(p_queue int) RETURNS bigint LANGUAGE sql STABLE AS $$
  SELECT coalesce((SELECT leased FROM beltline.tally WHERE queue = p_queue), 0) + coalesce((SELECT sum(leased) FROM beltline.delta WHERE queue = p_queue), 0)::bigint
$$;

-- Lease up to p_limit messages, each the one whose turn it is. plain: none, but so many may be taken as they stand in the queue. took: how many of `ids` were; the others were just being taken away. more: it gave up looking, there may be more.
CREATE FUNCTION beltline._flow_pick(p_now bigint, g beltline.flow, p_limit int, p_until bigint, p_who text, p_worker int, OUT ids uuid[], OUT took int, OUT parked int, OUT plain int, OUT more boolean)
  LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_ageing bigint := (SELECT ageing_ms FROM beltline.queue WHERE n = g.queue); v_total bigint; v_work bigint; v_shares constant int := 32; v_each int; v_found int; v_truncated boolean;
  v_n int[]; v_tag bigint[]; v_cost bigint[]; v_noisy int[]; v_leased bigint[]; v_recent bigint[]; v_order int[]; v_place bigint[];   -- of the shares; [1]: nobody's
  v_next int[]; v_last int[];   -- where the messages of a share stand in m_, from and to; from > to: it has none
  v_start bigint[]; m_share int[]; m_tids tid[]; m_ids uuid[]; m_lanes int[]; m_prios int[]; m_claims boolean[]; c record; r record; i int; b int; k int; v_plain tid[]; v_laned tid[]; v_taken int[]; v_shut int[]; v_closed int := 0; v_reload boolean; v_before int; v_were int[];
BEGIN
  g := beltline._flow_prepare(p_now, g, v_ageing);
  v_total := beltline._all_leased(g.queue);
  v_work := beltline._recent(p_now, g.span, g.work, g.work_before);
  ids := '{}'; took := 0; parked := 0; plain := 0; more := false;
  IF NOT EXISTS (SELECT FROM beltline.flow_share s WHERE s.queue = g.queue AND s.owner IN ('', p_who) AND s.standing AND NOT s.nobody)
      AND NOT EXISTS (SELECT FROM beltline.flow_share s JOIN beltline.flow_lane l ON l.share = s.n AND l.closed_limit IS NULL AND l.head_seq IS NOT NULL
        WHERE s.queue = g.queue AND s.nobody) THEN   -- only messages that have no lane: `receive` takes them all at once
    plain := p_limit;
    PERFORM beltline._flow_kept(g);
    RETURN;
  END IF;
  LOOP   -- a round: fill the arrays, use them up, write
    SELECT array_agg(x.n ORDER BY x.ord), array_agg(x.tag ORDER BY x.ord), array_agg(x.cost ORDER BY x.ord), array_agg(x.noisy::int ORDER BY x.ord), array_agg(x.leased ORDER BY x.ord),
        array_agg(x.recent ORDER BY x.ord), array_agg(x.place ORDER BY x.ord), array_agg(x.name ORDER BY x.ord)
      INTO v_n, v_tag, v_cost, v_noisy, v_leased, v_recent, v_place, v_order FROM (
        SELECT 0 AS ord, s.n, s.tag, s.cost, s.noisy, v_total - g.lent AS leased, beltline._recent(p_now, s.span, s.work, s.work_before) AS recent, 0::bigint AS place, 0::bigint AS name
          FROM beltline.flow_share s WHERE s.queue = g.queue AND s.nobody
        UNION ALL SELECT row_number() OVER (ORDER BY s.noisy, s.place, s.tenant, s.owner), s.n, s.tag, s.cost, s.noisy, s.leased,
            beltline._recent(p_now, s.span, s.work, s.work_before), s.place, row_number() OVER (ORDER BY s.tenant, s.owner) FROM (
          SELECT u.* FROM (
            (SELECT * FROM beltline.flow_share a WHERE a.queue = g.queue AND a.owner = '' AND a.standing AND NOT a.nobody ORDER BY a.noisy, a.place, a.tenant LIMIT v_shares)
            UNION ALL (SELECT * FROM beltline.flow_share a WHERE p_who <> '' AND a.queue = g.queue AND a.owner = p_who AND a.standing AND NOT a.nobody
              ORDER BY a.noisy, a.place, a.tenant LIMIT v_shares)) u
          ORDER BY u.noisy, u.place, u.tenant, u.owner LIMIT v_shares) s) x;
    v_found := cardinality(v_n);
    v_before := cardinality(ids) + v_closed;
    v_were := v_noisy;
    v_truncated := v_found > v_shares;
    v_each := least(p_limit - cardinality(ids), 2 + 2 * (p_limit - cardinality(ids)) / v_found, 500);
    SELECT x.share, x.tids, x.ids, x.lanes, x.prios, x.claims INTO m_share, m_tids, m_ids, m_lanes, m_prios, m_claims FROM beltline._next_of(p_now, g.queue, v_n, v_each) x;
    EXIT WHEN m_share IS NULL;
    v_next := array_fill(1, ARRAY[v_found]);
    v_last := array_fill(0, ARRAY[v_found]);
    FOR i IN 1..cardinality(m_share) LOOP
      b := m_share[i];
      IF v_last[b] = 0 THEN
        v_next[b] := i;
        v_place[b] := v_tag[b] - 1000 * v_ageing * m_prios[i];
      END IF;
      v_last[b] := i;
    END LOOP;
    v_start := v_place;   -- no share that is not here stands before the last of these
    v_plain := '{}'; v_laned := '{}'; v_taken := '{}'; v_shut := '{}'; v_reload := false;
    LOOP
      EXIT WHEN cardinality(ids) >= p_limit OR v_closed >= 1000;   -- so many may have to be closed after the numbers of a limit have changed
      b := 0;
      FOR i IN 1..v_found LOOP
        IF v_next[i] <= v_last[i] AND (b = 0 OR v_noisy[i] < v_noisy[b]
            OR v_noisy[i] = v_noisy[b] AND (v_place[i] < v_place[b] OR v_place[i] = v_place[b] AND v_order[i] < v_order[b])) THEN
          b := i;
        END IF;
      END LOOP;
      v_reload := b = 0 OR v_truncated AND (v_noisy[b] > v_noisy[v_found] OR v_noisy[b] = v_noisy[v_found]
        AND (v_place[b] > v_start[v_found] OR v_place[b] = v_start[v_found] AND v_order[b] > v_order[v_found]));
      EXIT WHEN v_reload;
      IF v_noisy[b] = 0 AND beltline._is_noisy(v_leased[b], v_total, v_recent[b], v_work) THEN
        v_noisy[b] := 1;
        EXIT WHEN v_truncated;   -- others that are not here may stand before it now
        CONTINUE;
      END IF;
      k := v_next[b];
      IF m_claims[k] THEN
        IF g.limited AND v_laned || v_plain <> '{}' THEN   -- their places may be of the same bucket
          SELECT * INTO r FROM beltline._take(p_now, g.queue, v_plain, v_laned, p_until, p_worker);
          took := took + r.took; parked := parked + r.parked; v_taken := v_taken || r.lanes; v_plain := '{}'; v_laned := '{}';
        END IF;
        SELECT l.name, x.costs INTO c FROM beltline.flow_message x JOIN beltline.flow_lane l ON l.n = x.lane WHERE x.id = m_ids[k];
        SELECT * INTO r FROM beltline._refuses(p_now, c.name, c.costs);
        IF r.name IS NOT NULL THEN
          UPDATE beltline.flow_lane SET closed_limit = r.name, closed_key = r.key, closed_until = r.until, closed_at = p_now WHERE n = m_lanes[k];
          v_shut := v_shut || m_lanes[k];
          v_closed := v_closed + 1;
        ELSE
          SELECT * INTO r FROM beltline._take(p_now, g.queue, '{}', m_tids[k : k], p_until, p_worker);
          took := took + r.took; parked := parked + r.parked; v_taken := v_taken || r.lanes;
          PERFORM beltline._start(p_now, m_ids[k], c.name, c.costs) WHERE r.took > 0;
        END IF;
      ELSIF m_lanes[k] IS NULL THEN
        v_plain := v_plain || m_tids[k];
      ELSE
        v_laned := v_laned || m_tids[k];
      END IF;
      IF v_closed = 0 OR NOT coalesce(m_lanes[k] = ANY(v_shut), false) THEN   -- a hand-out
        ids := ids || m_ids[k];
        g.turn := greatest(g.turn, v_tag[b]);
        v_tag[b] := v_tag[b] + v_cost[b];
        v_leased[b] := v_leased[b] + 1;
        v_total := v_total + 1;
        g.lent := g.lent + CASE WHEN b > 1 THEN 1 ELSE 0 END;
        IF g.limited THEN
          PERFORM beltline._start_in(p_now, g.queue, 1);
        END IF;
      END IF;
      LOOP
        k := k + 1;
        EXIT WHEN k > v_last[b] OR v_closed = 0 OR m_lanes[k] IS NULL OR NOT m_lanes[k] = ANY(v_shut);
      END LOOP;
      v_next[b] := k;
      IF k <= v_last[b] THEN
        v_place[b] := v_tag[b] - 1000 * v_ageing * m_prios[k];
      ELSIF (SELECT count(*) FROM unnest(m_share) x WHERE x = b) >= v_each THEN
        v_reload := true;   -- it may have more than are here
        EXIT;
      END IF;
    END LOOP;
    SELECT * INTO r FROM beltline._take(p_now, g.queue, v_plain, v_laned, p_until, p_worker);
    took := took + r.took; parked := parked + r.parked; v_taken := v_taken || r.lanes;
    UPDATE beltline.flow_lane l SET ready = l.ready - t.count, heads = l.heads - t.count, leased = l.leased + t.count, head_rank = h.rank, head_seq = h.seq
      FROM (SELECT lane, count(*)::int AS count FROM unnest(v_taken) AS x(lane) GROUP BY lane) t
        LEFT JOIN LATERAL (SELECT rank, seq FROM beltline.flow_ready x WHERE x.lane = t.lane ORDER BY rank, seq LIMIT 1) h ON true
      WHERE l.n = t.lane;
    UPDATE beltline.flow_share s SET tag = x.tag, noisy = x.noisy <> 0, leased = CASE WHEN s.nobody THEN s.leased ELSE x.leased END
      FROM unnest(v_n, v_tag, v_noisy, v_leased) AS x(n, tag, noisy, leased) WHERE s.n = x.n AND (s.tag, s.noisy) IS DISTINCT FROM (x.tag, x.noisy <> 0);
    PERFORM beltline._flow_stand(v_ageing, g.turn, v_n);
    EXIT WHEN cardinality(ids) >= p_limit OR b = 0 AND NOT v_truncated;
    more := v_closed >= 1000 OR cardinality(ids) + v_closed = v_before AND v_noisy = v_were;   -- nothing was found where something stood: it has just been taken away
    EXIT WHEN more;
  END LOOP;
  IF took < cardinality(ids) THEN   -- some were just being taken away
    UPDATE beltline.flow_share s SET leased = (SELECT coalesce(sum(l.leased), 0) FROM beltline.flow_lane l WHERE l.share = s.n) WHERE s.queue = g.queue;
    SELECT coalesce(sum(s.leased), 0) INTO g.lent FROM beltline.flow_share s WHERE s.queue = g.queue AND NOT s.nobody;
  END IF;
  UPDATE beltline.flow_share s SET standing = h.stands FROM (
      SELECT n, EXISTS (SELECT FROM beltline.ready o WHERE o.queue = g.queue AND (o.expires IS NULL OR o.expires > p_now))
        OR EXISTS (SELECT FROM beltline.flow_lane l WHERE l.share = x.n AND l.closed_limit IS NULL AND l.head_seq IS NOT NULL) AS stands
      FROM beltline.flow_share x WHERE x.queue = g.queue AND x.nobody) h
    WHERE s.n = h.n AND s.standing <> h.stands;
  PERFORM beltline._flow_kept(g);
END $$;

CREATE FUNCTION beltline._flow_kept(g beltline.flow) RETURNS void LANGUAGE sql AS $$
  UPDATE beltline.flow f SET turn = g.turn, members = g.members, sticky = g.sticky, lent = g.lent, span = g.span, work = g.work, work_before = g.work_before
    WHERE queue = g.queue AND (f.turn, f.members, f.sticky, f.lent, f.span, f.work, f.work_before) IS DISTINCT FROM (g.turn, g.members, g.sticky, g.lent, g.span, g.work, g.work_before)
$$;

-- The same rows as `receive` gives, for the queue that is the p_place-th of those asked for. beltline.opens: when time alone will let something start here (NULL: not at all).
CREATE FUNCTION beltline._flow_receive(p_now bigint, p_place int, p_queue int, p_limit int, p_lease bigint, p_who text, p_worker int)
  RETURNS TABLE(kind int, queue int, id uuid, task text, epoch int, failed int, lost int, sent bigint, until bigint, group_epoch bigint, head bytea, body bytea) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  g beltline.flow; r record; v_ids uuid[]; v_until bigint := p_now + p_lease; v_room bigint; v_opens bigint; v_took int := 0; v_parked int := 0; v_starved boolean; v_plain int := 0;
BEGIN
  PERFORM set_config('beltline.plain', '0', true);
  PERFORM FROM beltline.flow WHERE flow.queue = p_queue FOR NO KEY UPDATE;
  PERFORM FROM beltline.flow_limit x WHERE x.name IN (SELECT name FROM beltline.flow_claimed c WHERE c.queue = p_queue UNION SELECT name FROM beltline.flow_limited c WHERE c.queue = p_queue)
    ORDER BY x.name FOR NO KEY UPDATE;
  g := beltline._judge_switch(p_queue);
  IF greatest(g.snoozed, g.tripped) > p_now THEN
    RETURN;
  END IF;
  SELECT * INTO r FROM beltline._flow_again(p_now, g, p_limit, v_until, p_worker);
  v_ids := r.ids;
  v_room := r.room;
  v_opens := r.opens;
  IF v_room > 0 AND (SELECT feeds FROM beltline.queue WHERE n = p_queue) THEN
    v_room := least(v_room, beltline._room(p_now, p_queue));
  END IF;
  v_starved := v_room < 1;
  IF NOT v_starved AND g.shaped THEN
    SELECT * INTO r FROM beltline._flow_pick(p_now, g, v_room::int, v_until, p_who, p_worker);
    v_ids := v_ids || r.ids;
    v_took := r.took;
    v_parked := r.parked;
    v_opens := CASE WHEN r.more THEN p_now ELSE v_opens END;
    v_plain := r.plain;
  ELSIF NOT v_starved THEN
    v_plain := v_room;
  END IF;
  INSERT INTO beltline.delta(queue, ready, delayed, leased, dead, done, parked) SELECT p_queue, -v_took, 0, v_took, 0, 0, -v_parked WHERE v_took > 0;
  PERFORM set_config('beltline.opens', coalesce(least(nullif(current_setting('beltline.opens', true), '')::bigint, v_opens)::text, ''), true);
  IF v_plain > 0 THEN
    PERFORM set_config('beltline.plain', v_plain::text, true);
  ELSE
    PERFORM beltline._flow_opens(p_now, p_queue, NOT v_starved);
  END IF;
  RETURN QUERY SELECT 0, p_place, e.id, b.task, e.epoch, e.failed, e.lost, b.sent, e.due, CASE WHEN e.flags & 1 <> 0 THEN nextval('beltline.hand_out') ELSE 0 END, b.head, b.body
    FROM unnest(v_ids) WITH ORDINALITY AS a(id, ord) CROSS JOIN LATERAL (SELECT * FROM beltline.lease x WHERE x.id = a.id OFFSET 0) e
      CROSS JOIN LATERAL (SELECT task, sent, head, body FROM beltline.body y WHERE y.id = a.id OFFSET 0) b ORDER BY a.ord;
END $$;

-- When time alone will let something start in a queue. p_lanes: there is room, so that a lane that opens helps.
CREATE FUNCTION beltline._flow_opens(p_now bigint, p_queue int, p_lanes boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('beltline.opens', coalesce(least(nullif(current_setting('beltline.opens', true), '')::bigint, (SELECT x.opens FROM beltline._limited(p_now, p_queue) x),
    CASE WHEN p_lanes THEN (SELECT min(closed_until) FROM beltline.flow_lane WHERE queue = p_queue AND closed_limit IS NOT NULL AND closed_until < 9000000000000000000) END)::text, ''), true);
END $$;

-- `receive` has taken so many messages without a lane, from p_lowest on, while nothing else stood. p_all: as many as it was allowed to.
CREATE FUNCTION beltline._flow_took(p_now bigint, p_queue int, p_count int, p_all boolean, p_lowest bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE g beltline.flow; s beltline.flow_share; v_total bigint;
BEGIN
  SELECT * INTO g FROM beltline.flow WHERE queue = p_queue;
  IF g.limited THEN
    PERFORM beltline._start_in(p_now, p_queue, p_count) WHERE p_count > 0;
  END IF;
  IF g.shaped THEN
    SELECT * INTO s FROM beltline.flow_share WHERE queue = p_queue AND nobody;
    v_total := beltline._all_leased(p_queue) - 1;   -- before the last one: noisy is looked at before each, and these only make it more so
    s.noisy := s.noisy OR p_count > 0 AND beltline._is_noisy(v_total - g.lent, v_total, beltline._recent(p_now, s.span, s.work, s.work_before),
      beltline._recent(p_now, g.span, g.work, g.work_before));
    UPDATE beltline.flow_share SET tag = s.tag + p_count * s.cost, noisy = s.noisy,
      standing = p_all AND EXISTS (SELECT FROM beltline.ready o WHERE o.queue = p_queue AND o.rank >= p_lowest AND (o.expires IS NULL OR o.expires > p_now)) WHERE n = s.n;
    UPDATE beltline.flow SET turn = greatest(g.turn, s.tag + (p_count - 1) * s.cost) WHERE queue = p_queue AND p_count > 0;
  END IF;
  PERFORM beltline._flow_opens(p_now, p_queue, true);
END $$;
