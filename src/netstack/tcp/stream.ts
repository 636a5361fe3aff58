/**
 * Which connections are long streams: those whose segments are long, in either direction.
 *
 * Theory. A kernel that has much to send makes frames of up to 64 KiB, so their length tells more than their number does: a connection of requests and answers may carry
 * gigabytes in a day and wait for each round trip. A stream's frames may go a way to the guest that costs a thread's wake-up and spares the data plane the
 * guest's stack (WAY.stream). The mean length of the last segments decides, with one bound to become a stream and a lower one to be none any more, because a
 * change of the way may let a frame overtake the one before.
 *
 * Owns: `mean`, and the flow's way. Never does: sending.
 */
import type { FlowTable } from '../flow/table.ts'
import { WAY } from '../switch/port.ts'
import type { TcpColumns } from './columns.ts'

/** Bytes of payload, on average. */
const STREAM_FROM = 16 * 1024
const STREAM_UNTIL = 4 * 1024
/** Each segment counts for 1/16: five of 64 KiB make a stream. */
const SHARE = 4

/** `len` bytes of payload have come, or gone. */
export function streamed(c: TcpColumns, table: FlowTable, i: number, len: number): void {
  const mean = c.mean[i] + ((len - c.mean[i]) >> SHARE)
  c.mean[i] = mean
  if (mean >= STREAM_FROM) table.way[i] = WAY.stream
  else if (mean < STREAM_UNTIL) table.way[i] = WAY.now
}
