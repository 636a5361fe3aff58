/**
 * The window that the relay advertises to a guest: the free send space of its host socket.
 *
 * Owns: `edge`, the right edge as advertised, which never goes back (RFC 9293 §3.8.6.2.2, RFC 7323 §2.4). What lies within it
 * has been promised; whether the host socket keeps the promise is `tcpFree`'s care. The silly window syndrome is avoided on
 * the receiver's side: the edge moves by a segment or half of the whole at least.
 */
import { seqAdd, seqDiff, seqGt } from '../wire/tcp.ts'
import { GUEST_FIN, type TcpColumns } from './columns.ts'
import type { TcpHost } from './context.ts'

/** Move the edge to what the host socket has room for now. */
export function openWindow(c: TcpColumns, host: TcpHost, sock: number, i: number): void {
  if (sock < 0 || c.has(i, GUEST_FIN)) return
  const remaining = windowLeft(c, i)
  // Most of it is open still: no need to ask.
  if (remaining > (c.rcvWndMax[i] >> 3) * 7) return
  const shift = c.rcvShift[i]
  const free = (Math.min(host.tcpFree(sock), 0xffff << shift) >> shift) << shift
  const most = c.rcvWndMax[i]
  if (free - remaining < Math.min(c.mss[i], Math.max(1, most >> 1))) return
  c.edge[i] = seqAdd(c.rcvNxt[i], free)
  if (free > most) c.rcvWndMax[i] = free
}

/** Bytes the guest may still send. */
export function windowLeft(c: TcpColumns, i: number): number {
  return Math.max(0, seqDiff(c.edge[i], c.rcvNxt[i]))
}

/**
 * The header's window field. A remainder that the scale cannot express is rounded up and `edge` with it (by less than
 * 2^shift bytes): rounding down would take back what was advertised.
 */
export function windowField(c: TcpColumns, i: number): number {
  const shift = c.rcvShift[i]
  const left = windowLeft(c, i)
  const field = Math.min(0xffff, (left + (1 << shift) - 1) >> shift)
  const edge = seqAdd(c.rcvNxt[i], field << shift)
  if (seqGt(edge, c.edge[i])) c.edge[i] = edge
  return field
}
