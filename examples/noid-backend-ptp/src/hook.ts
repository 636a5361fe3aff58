/** What noid's hook `noid:backends` is answered with: descriptors. Nothing is loaded before it is chosen. */
import { descriptor } from './descriptor.ts'

export default async function backends() {
  return [descriptor]
}
