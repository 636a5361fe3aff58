/**
 * Giving up privileges: once the control socket is bound, nothing here needs a right any more; what does is opened by the daemon
 * and handed over.
 *
 * Theory. Root's data plane becomes a user id that nobody else has, in every thread (sys/privilege.ts), inside the process that is
 * already running: the sources may lie below /root, where that id could not read them to start anew. Leaving uid 0 clears
 * the capabilities; the bounding set, no-new-privileges and undumpable are the second wall. A user's data plane has nothing to
 * give up but takes the second wall too.
 */
import { errnoName } from '../sys/errno.ts'
import { become, dropBoundingSet, dropCapabilities, noNewPrivileges, undumpable } from '../sys/privilege.ts'

/** "noid" in ASCII: far from every range that distributions, systemd or subordinate ids use. */
const OWN_ID = 0x6e6f6964
/** Where only some ids exist (a user namespace): nobody. */
const NOBODY = 65534

/** @returns what could not be given up, for the log; empty when everything was */
export function confine(): string[] {
  const left: string[] = []
  const note = (what: string, r: number): void => {
    if (r < 0) left.push(`${what}: ${errnoName(r)}`)
  }
  if (process.geteuid?.() === 0) {
    dropBoundingSet()
    if (become(OWN_ID, OWN_ID) < 0) note('change the user id', become(NOBODY, NOBODY))
  }
  note('drop capabilities', dropCapabilities())
  note('forbid new privileges', noNewPrivileges())
  note('be undumpable', undumpable())
  return left
}
