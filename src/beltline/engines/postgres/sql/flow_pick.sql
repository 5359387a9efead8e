-- Who is next in a queue with lanes. It is worked out in arrays: some shares that stand, first in line; of each the first messages of its open lanes; and the buckets these claim.
-- What is taken, and what that makes of buckets, lanes and shares, is written at once when the arrays are used up or the receive has enough. That is a round.

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
          FROM (SELECT x.n, x.prio, cardinality(x.name) > 2 AS claims, x.head_rank, x.head_seq FROM beltline.flow_lane x WHERE x.share = s.n AND x.closed_limit IS NULL AND x.head_seq IS NOT NULL
              ORDER BY x.head_rank, x.head_seq LIMIT p_each) l
            CROSS JOIN LATERAL (SELECT y.ctid, y.id, y.rank, y.seq FROM beltline.flow_ready y
              WHERE y.lane = l.n AND (y.rank, y.seq) >= (l.head_rank, l.head_seq) AND (y.expires IS NULL OR y.expires > p_now)   -- not through those that are gone
              ORDER BY y.rank, y.seq LIMIT p_each) r
        UNION ALL SELECT f.ctid, f.id, f.rank, f.seq, NULL, (SELECT b.prio::int FROM beltline.body b WHERE b.id = f.id), false
          FROM (SELECT y.ctid, y.id, y.rank, y.seq FROM beltline.ready y WHERE s.ord = 1 AND y.queue = p_queue AND (y.expires IS NULL OR y.expires > p_now)
            ORDER BY y.rank, y.seq LIMIT p_each) f) u
      ORDER BY u.rank, u.seq LIMIT p_each) m;
END $$;

-- What these messages claim: those of message k stand in `bucket` and `takes` from firsts[k] to lasts[k]; `bucket` points into the b_.
-- b_own: a limit of this whole queue too. b_left: places that are free (NULL: no concurrency), at least; b_exact: so many, and the first of the others ends at b_soonest.
CREATE FUNCTION beltline._claims_of(p_now bigint, p_queue int, p_ids uuid[], p_lanes int[], p_claims boolean[],
  OUT firsts int[], OUT lasts int[], OUT bucket int[], OUT takes bigint[], OUT b_name text[], OUT b_key text[], OUT b_own boolean[],
  OUT b_tat bigint[], OUT b_interval bigint[], OUT b_burst bigint[], OUT b_most int[], OUT b_left int[], OUT b_exact boolean[], OUT b_soonest bigint[]) LANGUAGE plpgsql STABLE AS $$
DECLARE v_places int[]; v_costs float8[]; v_names text[]; v_keys text[];
BEGIN
  SELECT array_agg(c.k::int ORDER BY c.k, c.place), array_agg(c.bucket::int ORDER BY c.k, c.place), array_agg(c.cost ORDER BY c.k, c.place),
      array_agg(c.name ORDER BY c.bucket) FILTER (WHERE c.first), array_agg(c.key ORDER BY c.bucket) FILTER (WHERE c.first)
    INTO v_places, bucket, v_costs, v_names, v_keys FROM (
      SELECT u.*, row_number() OVER (PARTITION BY u.bucket) = 1 AS first FROM (
        SELECT m.k, p.place, l.name[2 * p.place + 1] AS name, l.name[2 * p.place + 2] AS key, x.costs[p.place] AS cost,
            dense_rank() OVER (ORDER BY l.name[2 * p.place + 1], l.name[2 * p.place + 2]) AS bucket
          FROM unnest(p_ids, p_lanes, p_claims) WITH ORDINALITY AS m(id, lane, claims, k)
            CROSS JOIN LATERAL (SELECT costs FROM beltline.flow_message y WHERE y.id = m.id OFFSET 0) x
            CROSS JOIN LATERAL (SELECT name FROM beltline.flow_lane y WHERE y.n = m.lane OFFSET 0) l
            CROSS JOIN LATERAL generate_series(1, cardinality(x.costs)) AS p(place) WHERE m.claims) u) c;
  SELECT array_agg(b.name ORDER BY b.n), array_agg(b.key ORDER BY b.n), array_agg(b.own ORDER BY b.n), array_agg(greatest(b.tat, p_now * 1000) ORDER BY b.n),
      array_agg(coalesce(b.interval_us, 0) ORDER BY b.n), array_agg(b.burst_us ORDER BY b.n), array_agg(b.most ORDER BY b.n),
      array_agg(b.most - coalesce(r.running, h.held) ORDER BY b.n), array_agg(r.running IS NOT NULL ORDER BY b.n), array_agg(r.soonest ORDER BY b.n)
    INTO b_name, b_key, b_own, b_tat, b_interval, b_burst, b_most, b_left, b_exact, b_soonest
    FROM (SELECT u.n, u.name, u.key, l.interval_us, l.burst_us, l.most, (SELECT tat FROM beltline.flow_bucket t WHERE t.name = u.name AND t.key = u.key) AS tat,
          u.key = '' AND EXISTS (SELECT FROM beltline.flow_limited q WHERE q.queue = p_queue AND q.name = u.name) AS own
        FROM unnest(v_names, v_keys) WITH ORDINALITY AS u(name, key, n) LEFT JOIN LATERAL (SELECT * FROM beltline.flow_limit x WHERE x.name = u.name OFFSET 0) l ON true) b
      -- Holds of leases that are over count here: quickly found. Leases of a queue that is limited as a whole have none.
      LEFT JOIN LATERAL (SELECT CASE WHEN b.key = '' AND EXISTS (SELECT FROM beltline.flow_limited q WHERE q.name = b.name) THEN NULL
        ELSE (SELECT count(*)::int FROM (SELECT FROM beltline.flow_hold x WHERE x.name = b.name AND x.key = b.key LIMIT b.most) t) END AS held) h ON b.most IS NOT NULL
      LEFT JOIN LATERAL (
        SELECT x.running::int, x.soonest FROM beltline._running(p_now, b.name, b.key) x WHERE h.held IS NULL
        UNION ALL SELECT count(*)::int, min(l.due) FROM beltline.flow_hold o CROSS JOIN LATERAL (SELECT due FROM beltline.lease y WHERE y.id = o.id OFFSET 0) l   -- as it does, in place
          WHERE o.name = b.name AND o.key = b.key AND l.due > p_now HAVING h.held >= b.most) r ON b.most IS NOT NULL;
  firsts := array_fill(1, ARRAY[cardinality(p_ids)]);
  lasts := array_fill(0, ARRAY[cardinality(p_ids)]);
  takes := '{}';
  FOR i IN 1..coalesce(cardinality(v_places), 0) LOOP
    IF lasts[v_places[i]] = 0 THEN
      firsts[v_places[i]] := i;
    END IF;
    lasts[v_places[i]] := i;
    takes[i] := beltline._takes(v_costs[i], b_interval[bucket[i]]);
  END LOOP;
END $$;

-- These messages start: the buckets they claim are charged, and they hold their places.
CREATE FUNCTION beltline._start_all(p_now bigint, p_ids uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  WITH claim AS MATERIALIZED (
    SELECT x.id, l.name[2 * p.place + 1] AS name, l.name[2 * p.place + 2] AS key, x.costs[p.place] AS cost
      FROM unnest(p_ids) AS i(id) CROSS JOIN LATERAL (SELECT * FROM beltline.flow_message y WHERE y.id = i.id OFFSET 0) x
        CROSS JOIN LATERAL (SELECT name FROM beltline.flow_lane y WHERE y.n = x.lane OFFSET 0) l CROSS JOIN LATERAL generate_series(1, cardinality(x.costs)) AS p(place)),
  held AS (INSERT INTO beltline.flow_hold(id, name, key) SELECT id, name, key FROM claim ON CONFLICT DO NOTHING)
  INSERT INTO beltline.flow_bucket AS b (name, key, tat)
    SELECT c.name, c.key, p_now * 1000 + sum(beltline._takes(c.cost, l.interval_us))::bigint
      FROM claim c CROSS JOIN LATERAL (SELECT interval_us FROM beltline.flow_limit x WHERE x.name = c.name AND x.interval_us > 0 OFFSET 0) l GROUP BY c.name, c.key ORDER BY c.name, c.key
    ON CONFLICT (name, key) DO UPDATE SET tat = greatest(b.tat, p_now * 1000) + EXCLUDED.tat - p_now * 1000;
END $$;

-- Lease up to p_limit messages, each the one whose turn it is. plain: none, but so many may be taken as they stand in the queue.
-- took: how many of `ids` were; the others were just being taken away. more: it gave up looking, there may be more.
CREATE FUNCTION beltline._flow_pick(p_now bigint, INOUT g beltline.flow, p_limit int, p_until bigint, p_who text, p_worker int,
  OUT ids uuid[], OUT took int, OUT parked int, OUT plain int, OUT more boolean) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_ageing bigint := (SELECT ageing_ms FROM beltline.queue WHERE n = g.queue); v_now bigint := p_now * 1000; v_total bigint; v_work bigint; v_shares constant int := 32; v_each int; v_found int;
  v_n int[]; v_tag bigint[]; v_cost bigint[]; v_noisy int[]; v_leased bigint[]; v_recent bigint[]; v_order int[]; v_place bigint[]; v_start bigint[];   -- of the shares; [1]: nobody's
  v_next int[]; v_last int[];   -- where the messages of a share stand in m_, from and to; from > to: it has none
  m_share int[]; m_tids tid[]; m_ids uuid[]; m_lanes int[]; m_prios int[]; m_claims boolean[]; c record;
  c_first int[]; c_last int[]; c_bucket int[]; c_takes bigint[];   -- as `_claims_of` gives them
  b_own boolean[]; b_tat bigint[]; b_interval bigint[]; b_burst bigint[]; b_most int[]; b_left int[]; b_exact boolean[]; b_soonest bigint[]; b_given int[];
  v_plain tid[]; v_laned tid[]; v_claiming uuid[]; s_lane int[]; s_bucket int[]; s_until bigint[];   -- taken, and lanes that are shut
  r record; i int; j int; k int; o int; x int; v_refused int; v_until bigint; v_tat bigint; v_wanted int; v_shut int := 0; v_before int; v_were int[]; v_truncated boolean; v_reload boolean; v_told boolean;
BEGIN
  SELECT * INTO r FROM beltline._flow_prepare(p_now, g, v_ageing);
  g := r.g; v_told := r.more;
  ids := '{}'; took := 0; parked := 0; plain := 0; more := v_told;
  IF NOT EXISTS (SELECT FROM beltline.flow_share s WHERE s.queue = g.queue AND s.owner IN ('', p_who) AND s.standing AND NOT s.nobody)
      AND NOT EXISTS (SELECT FROM beltline.flow_share s JOIN beltline.flow_lane l ON l.share = s.n AND l.closed_limit IS NULL AND l.head_seq IS NOT NULL
        WHERE s.queue = g.queue AND s.nobody) THEN   -- only messages that have no lane: `receive` takes them all at once
    plain := p_limit;
    RETURN;
  END IF;
  v_total := beltline._all_leased(g.queue);
  v_work := beltline._recent(p_now, g.span, g.work, g.work_before);
  LOOP
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
    v_before := cardinality(ids) + v_shut;
    v_were := v_noisy;
    v_truncated := v_found > v_shares;
    v_each := CASE WHEN v_shut > 0 THEN 500 ELSE least(p_limit - cardinality(ids), 2 + 2 * (p_limit - cardinality(ids)) / v_found, 500) END;
    SELECT x.share, x.tids, x.ids, x.lanes, x.prios, x.claims INTO m_share, m_tids, m_ids, m_lanes, m_prios, m_claims FROM beltline._next_of(p_now, g.queue, v_n, v_each) x;
    EXIT WHEN m_share IS NULL;
    IF true = ANY(m_claims) THEN
      PERFORM beltline._lock_limits(g.queue);
      SELECT * INTO c FROM beltline._claims_of(p_now, g.queue, m_ids, m_lanes, m_claims);
      c_first := c.firsts; c_last := c.lasts; c_bucket := c.bucket; c_takes := c.takes;
      b_own := c.b_own; b_tat := c.b_tat; b_interval := c.b_interval; b_burst := c.b_burst; b_most := c.b_most; b_left := c.b_left; b_exact := c.b_exact; b_soonest := c.b_soonest;
      b_given := array_fill(0, ARRAY[cardinality(b_tat)]);
    END IF;
    v_next := array_fill(1, ARRAY[v_found]);
    v_last := array_fill(0, ARRAY[v_found]);
    FOR i IN 1..cardinality(m_share) LOOP
      o := m_share[i];
      IF v_last[o] = 0 THEN
        v_next[o] := i;
        v_place[o] := v_tag[o] - 1000 * v_ageing * m_prios[i];
      END IF;
      v_last[o] := i;
    END LOOP;
    v_start := v_place;   -- no share that is not here stands before the last of these
    v_plain := '{}'; v_laned := '{}'; v_claiming := '{}'; s_lane := '{}'; s_bucket := '{}'; s_until := '{}'; v_wanted := 0; v_reload := false;
    LOOP
      EXIT WHEN cardinality(ids) >= p_limit OR v_shut + cardinality(s_lane) >= 1000;   -- so many may have to be closed after the numbers of a limit have changed
      o := 0;
      FOR i IN 1..v_found LOOP
        IF v_next[i] <= v_last[i] AND (o = 0 OR v_noisy[i] < v_noisy[o]
            OR v_noisy[i] = v_noisy[o] AND (v_place[i] < v_place[o] OR v_place[i] = v_place[o] AND v_order[i] < v_order[o])) THEN
          o := i;
        END IF;
      END LOOP;
      v_reload := o = 0 OR v_truncated AND (v_noisy[o] > v_noisy[v_found] OR v_noisy[o] = v_noisy[v_found]
        AND (v_place[o] > v_start[v_found] OR v_place[o] = v_start[v_found] AND v_order[o] > v_order[v_found]));
      EXIT WHEN v_reload;
      IF v_noisy[o] = 0 AND beltline._is_noisy(v_leased[o], v_total, v_recent[o], v_work) THEN
        v_noisy[o] := 1;
        EXIT WHEN v_truncated;   -- others that are not here may stand before it now
        CONTINUE;
      END IF;
      k := v_next[o];
      v_refused := 0;
      IF m_claims[k] THEN   -- the rules of `_refuses`
        FOR j IN c_first[k]..c_last[k] LOOP
          x := c_bucket[j];
          IF b_left[x] < 1 AND NOT b_exact[x] THEN
            SELECT * INTO r FROM beltline._running(p_now, c.b_name[x], c.b_key[x]);
            b_left[x] := b_most[x] - b_given[x] - r.running; b_soonest[x] := r.soonest; b_exact[x] := true;
          END IF;
          IF b_left[x] < 1 THEN
            v_refused := x;
            v_until := coalesce(least(b_soonest[x], CASE WHEN b_given[x] > 0 THEN p_until END), 9000000000000000000);
            EXIT;
          END IF;
          v_tat := b_tat[x] + c_takes[j] - greatest(b_burst[x], c_takes[j]);
          IF b_interval[x] > 0 AND v_tat > v_now THEN
            v_refused := x;
            v_until := (v_tat + 999) / 1000;
            EXIT;
          END IF;
        END LOOP;
      END IF;
      IF v_refused > 0 THEN
        s_lane := s_lane || m_lanes[k]; s_bucket := s_bucket || v_refused; s_until := s_until || v_until;
      ELSE   -- a hand-out
        IF m_claims[k] THEN
          FOR j IN c_first[k]..c_last[k] LOOP
            x := c_bucket[j];
            b_tat[x] := b_tat[x] + c_takes[j];
            IF NOT b_own[x] THEN
              b_left[x] := b_left[x] - 1;
              b_given[x] := b_given[x] + 1;
            END IF;
          END LOOP;
          v_claiming := v_claiming || m_ids[k];
        END IF;
        IF g.limited AND b_own IS NOT NULL THEN   -- a start in this queue, whatever it claims
          FOR x IN 1..cardinality(b_own) LOOP
            IF b_own[x] THEN
              b_tat[x] := b_tat[x] + b_interval[x];
              b_left[x] := b_left[x] - 1;
              b_given[x] := b_given[x] + 1;
            END IF;
          END LOOP;
        END IF;
        IF m_lanes[k] IS NULL THEN
          v_plain := v_plain || m_tids[k];
        ELSE
          v_laned := v_laned || m_tids[k];
        END IF;
        v_wanted := v_wanted + 1;
        ids := ids || m_ids[k];
        g.turn := greatest(g.turn, v_tag[o]);
        v_tag[o] := v_tag[o] + v_cost[o];
        v_leased[o] := v_leased[o] + 1;
        v_total := v_total + 1;
        g.lent := g.lent + CASE WHEN o > 1 THEN 1 ELSE 0 END;
      END IF;
      LOOP
        k := k + 1;
        EXIT WHEN k > v_last[o] OR m_lanes[k] IS NULL OR NOT m_lanes[k] = ANY(s_lane);
      END LOOP;
      v_next[o] := k;
      IF k <= v_last[o] THEN
        v_place[o] := v_tag[o] - 1000 * v_ageing * m_prios[k];
      ELSIF (SELECT count(*) FROM unnest(m_share) y WHERE y = o) >= v_each THEN
        v_reload := true;   -- it may have more than are here
        EXIT;
      END IF;
    END LOOP;
    SELECT * INTO r FROM beltline._take(p_now, g.queue, v_plain, v_laned, p_until, p_worker);
    took := took + r.took; parked := parked + r.parked;
    PERFORM beltline._start_all(p_now, ARRAY(SELECT y FROM unnest(v_claiming) y WHERE y = ANY(r.ids))) WHERE v_claiming <> '{}';
    PERFORM beltline._start_in(p_now, g.queue, r.took) WHERE g.limited AND r.took > 0;
    more := r.took < v_wanted;   -- some were just being taken away: what their starts seemed to close may be open
    IF s_lane <> '{}' AND NOT more THEN
      UPDATE beltline.flow_lane l SET closed_limit = c.b_name[s.bucket], closed_key = c.b_key[s.bucket], closed_until = s.until, closed_at = p_now
        FROM unnest(s_lane, s_bucket, s_until) AS s(lane, bucket, until) WHERE l.n = s.lane;
      v_shut := v_shut + cardinality(s_lane);
    END IF;
    UPDATE beltline.flow_lane l SET ready = l.ready - t.count, heads = l.heads - t.count, leased = l.leased + t.count, head_rank = h.rank, head_seq = h.seq
      FROM (SELECT lane, count(*)::int AS count FROM unnest(r.lanes) AS x(lane) GROUP BY lane) t
        CROSS JOIN LATERAL (SELECT head_rank, head_seq FROM beltline.flow_lane x WHERE x.n = t.lane OFFSET 0) b
        LEFT JOIN LATERAL (SELECT rank, seq FROM beltline.flow_ready x WHERE x.lane = t.lane AND (x.rank, x.seq) >= (b.head_rank, b.head_seq) ORDER BY rank, seq LIMIT 1) h ON true
      WHERE l.n = t.lane;
    UPDATE beltline.flow_share s SET tag = x.tag, noisy = x.noisy <> 0, leased = CASE WHEN s.nobody THEN s.leased ELSE x.leased END
      FROM unnest(v_n, v_tag, v_noisy, v_leased) AS x(n, tag, noisy, leased) WHERE s.n = x.n AND (s.tag, s.noisy) IS DISTINCT FROM (x.tag, x.noisy <> 0);
    PERFORM beltline._flow_stand(v_ageing, g.turn, v_n);
    EXIT WHEN more OR cardinality(ids) >= p_limit OR o = 0 AND NOT v_truncated;
    more := v_shut >= 1000 OR cardinality(ids) + v_shut = v_before AND v_noisy = v_were;   -- nothing was found where something stood: it has just been taken away
    EXIT WHEN more;
  END LOOP;
  more := more OR v_told;
  IF took < cardinality(ids) THEN
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
