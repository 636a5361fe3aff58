/** What this machine lacks for building images, for `noid doctor`: nothing of it is required, an image can be imported. */
import { find, PACKAGES } from './run.ts'
import { DISK_TOOLS, USER_DISK_TOOLS } from './tools.ts'

export interface ImageCheck {
  readonly name: string
  readonly ok: boolean
  readonly required: false
  readonly detail: string
  readonly hint?: string
}

export function checkImages(root = process.getuid?.() === 0): ImageCheck {
  const base = { name: 'images of VMs', required: false } as const
  const missing = [...DISK_TOOLS, ...(root ? [] : USER_DISK_TOOLS)].filter((t) => find(t) === undefined)
  if (missing.length === 0) return { ...base, ok: true, detail: 'debian and tiny can be built' }
  const apt = missing.includes('apt-get')
  return {
    ...base,
    ok: false,
    detail: apt
      ? 'the built-in ones are made of Debian packages, and there is no apt-get here'
      : `debian cannot be built without ${missing.join(', ')}`,
    hint: apt
      ? 'take a disk of your own: noid image import'
      : `as root: apt-get install --no-install-recommends ${[...new Set(missing.map((t) => PACKAGES[t]))].join(' ')}`,
  }
}
