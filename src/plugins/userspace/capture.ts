/**
 * A capture as the daemon sees it: one end of a pair of sockets, of which the data plane has the other.
 *
 * Closing our end is all it takes to end the capture. What we do not read stays in the socket's buffer and then in the data plane's ring, whose frames
 * are counted when they do not fit: a reader that is slow costs nobody memory.
 */
import { randomBytes } from 'node:crypto'
import { Socket } from 'node:net'
import type { Readable } from 'node:stream'
import { NoidError } from '../../errors.ts'
import { SysError } from '../../sys/errno.ts'
import { close } from '../../sys/fd.ts'
import { socketpair } from '../../sys/scm.ts'
import type { CaptureOptions } from '../contract.ts'
import { type Link, Refused } from '../dataplane/link.ts'

/** @throws NoidError CAPTURE_REFUSED; DATAPLANE_LOST */
export async function openCapture(link: Link, network: string, o: CaptureOptions): Promise<Readable> {
  const pair = socketpair()
  if (typeof pair === 'number') throw new SysError('socketpair', pair)
  const [ours, theirs] = pair
  const id = randomBytes(4).toString('hex')
  const { attachment, snapLength } = o
  try {
    await link.request({ op: 'capture', fds: 1, id, attachment, snapLength }, [theirs])
  } catch (e) {
    close(ours)
    throw e instanceof Refused ? new NoidError('CAPTURE_REFUSED', { network, why: e.message }) : e
  } finally {
    close(theirs)
  }
  return new Socket({ fd: ours, readable: true, writable: false })
}
