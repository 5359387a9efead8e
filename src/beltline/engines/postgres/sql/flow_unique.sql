-- Unique keys: which other message stands for one that is sent. In the flow of an item: {"u": [key, states, window in ms or null, replace, most in ms or null,
-- headers, middle, timeout and retry, tail]}; the last four are parts of the packed envelope, in hex.

-- The message that stands for this item by its unique key; NULL: none. Its key is locked; one that may be replaced is locked as well.
CREATE FUNCTION beltline._same(p_now bigint, p_item beltline.item, p_batch jsonb) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE u jsonb := p_item.flow->'u'; v_earlier jsonb := p_batch->(p_item.queue || ' ' || (u->>0)); v_id uuid; f beltline.fact; v_sent bigint; v_state text;
BEGIN
  IF v_earlier IS NOT NULL THEN   -- of the same send
    RETURN CASE WHEN u->1 ? (v_earlier->>1) AND coalesce((u->>2)::bigint, 1) > 0 THEN (v_earlier->>0)::uuid END;
  END IF;
  SELECT id INTO v_id FROM beltline.flow_unique WHERE queue = p_item.queue AND key = u->>0;
  IF v_id IS NULL THEN
    RETURN NULL;
  ELSIF (u->>3)::boolean THEN
    PERFORM FROM beltline.blocked WHERE id = v_id FOR UPDATE;
    PERFORM FROM beltline.delayed WHERE id = v_id FOR UPDATE;
    PERFORM FROM beltline.ready WHERE id = v_id FOR UPDATE;
    PERFORM FROM beltline.flow_ready WHERE id = v_id FOR UPDATE;
  END IF;
  f := beltline._find(v_id);
  SELECT sent INTO v_sent FROM beltline.body WHERE id = v_id;
  IF f.queue IS DISTINCT FROM p_item.queue OR p_now >= v_sent + (u->>2)::bigint THEN
    RETURN NULL;
  END IF;
  v_state := CASE f.state WHEN 0 THEN CASE WHEN f.since <= p_now THEN 'ready' ELSE 'delayed' END WHEN 1 THEN 'ready' WHEN 2 THEN 'leased' WHEN 3 THEN 'done' ELSE 'dead' END;
  RETURN CASE WHEN u->1 ? v_state THEN v_id END;
END $$;

-- Which of these messages are new, one by one, where some have a unique key. answers: for the others, as `send` gives them (code 3: `id` is replaced; text: what stays
-- of its envelope).
CREATE FUNCTION beltline._admit(p_now bigint, p_items beltline.item[], OUT admitted beltline.item[], OUT answers beltline.answer[]) LANGUAGE plpgsql AS $$
DECLARE i beltline.item; v_other uuid; v_batch jsonb := '{}'; v_due bigint;
BEGIN
  answers := '{}';
  PERFORM pg_advisory_xact_lock(1111837783, h) FROM (   -- "BELT" + 3: two that send the same key
    SELECT DISTINCT hashtext(queue || ' ' || (flow->'u'->>0)) AS h FROM unnest(p_items) WHERE flow ? 'u' ORDER BY 1) keys;
  FOREACH i IN ARRAY p_items LOOP
    IF EXISTS (SELECT FROM beltline.body b WHERE b.id = i.id) OR EXISTS (SELECT FROM beltline.known k WHERE k.id = i.id) THEN
      answers := answers || (1, i.ord, i.id, NULL, NULL)::beltline.answer;
      CONTINUE;
    END IF;
    SELECT id INTO v_other FROM beltline.dedup d WHERE d.queue = i.queue AND d.key = i.dedup AND d.until > p_now AND i.dedup_ms > 0;
    IF v_other IS NULL AND i.flow ? 'u' THEN
      v_other := beltline._same(p_now, i, v_batch);
      IF v_other IS NOT NULL AND (i.flow->'u'->>3)::boolean THEN
        answers := answers || (SELECT ROW(3, i.ord, v_other, encode(middle, 'hex') || ' ' || encode(tail, 'hex'), NULL)::beltline.answer   -- another may have the key next
          FROM beltline.flow_unique WHERE queue = i.queue AND key = i.flow->'u'->>0);
        CONTINUE;
      END IF;
    END IF;
    IF v_other IS NULL AND i.dedup_ms > 0 THEN
      INSERT INTO beltline.dedup AS d (queue, key, id, until) VALUES (i.queue, i.dedup, i.id, p_now + i.dedup_ms)
        ON CONFLICT (queue, key) DO UPDATE SET id = EXCLUDED.id, until = EXCLUDED.until WHERE d.until <= p_now;
      IF NOT FOUND THEN   -- somebody else has just sent it
        SELECT id INTO v_other FROM beltline.dedup d WHERE d.queue = i.queue AND d.key = i.dedup;
      END IF;
    END IF;
    IF v_other IS NOT NULL THEN
      answers := answers || (2, i.ord, v_other, NULL, NULL)::beltline.answer;
      CONTINUE;
    END IF;
    admitted := admitted || i;
    IF i.flow ? 'u' THEN
      v_due := coalesce(i.due, p_now + coalesce(i.delay, 0));
      v_batch := v_batch || jsonb_build_object(i.queue || ' ' || (i.flow->'u'->>0), jsonb_build_array(i.id, CASE WHEN v_due <= p_now THEN 'ready' ELSE 'delayed' END));
      PERFORM beltline._unique(i.queue, i.id, i.flow);
    END IF;
  END LOOP;
END $$;

CREATE FUNCTION beltline._unique(p_queue int, p_id uuid, p_flow jsonb) RETURNS void LANGUAGE sql AS $$
  INSERT INTO beltline.flow_unique(queue, key, id, middle, tail)
    VALUES (p_queue, p_flow->'u'->>0, p_id, decode(p_flow->'u'->>6, 'hex'), decode(p_flow->'u'->>8, 'hex'))
    ON CONFLICT (queue, key) DO UPDATE SET id = EXCLUDED.id, middle = EXCLUDED.middle, tail = EXCLUDED.tail
$$;

-- The newest wins: p_id, which has not begun, takes over what the item says, and a delayed one is put off.
CREATE FUNCTION beltline._replace(p_now bigint, p_id uuid, p_item beltline.item, p_stays text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE u jsonb := p_item.flow->'u'; f beltline.fact := beltline._find(p_id); b record; v_due bigint;
BEGIN
  SELECT sent, prio, group_key INTO b FROM beltline.body WHERE id = p_id;
  PERFORM beltline._note(p_now, f, 'replaced', 0, 'by ' || replace(p_item.id::text, '-', ''), NULL);
  UPDATE beltline.body SET body = p_item.body,
      head = decode('9c' || (u->>5) || split_part(p_stays, ' ', 1) || (u->>7) || split_part(p_stays, ' ', 2), 'hex') WHERE id = p_id;
  IF f.state <> 0 OR f.since <= p_now THEN
    RETURN;
  END IF;
  f := beltline._remove(p_id, '{0}');
  v_due := least(coalesce(p_item.due, p_now + coalesce(p_item.delay, 0)), b.sent + (u->>4)::bigint);
  f.since := greatest(p_now, v_due);
  f.rank := beltline._rank(f.queue, f.since, b.prio);
  IF v_due <= p_now THEN
    f.state := 1;
    PERFORM beltline._moved(f.queue, 0, 1);
    PERFORM beltline._flow_moved(ARRAY[p_id], 0, 1) WHERE f.flags & 8 <> 0;
  END IF;
  IF f.blocked THEN
    PERFORM beltline._put_blocked(f, f.queue, b.group_key);
  ELSIF f.state = 1 THEN
    PERFORM beltline._put_ready(p_now, f, f.queue);
  ELSE
    PERFORM beltline._put_delayed(f, f.queue);
  END IF;
END $$;
